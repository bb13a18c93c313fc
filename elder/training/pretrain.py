"""Pre-training: fit D = I − ∇h_θ(·, σ) to clean patches under Gaussian noise of random level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elder.compute import rounded
from elder.errors import UserError
from elder.images import Patches
from elder.metrics import psnr
from elder.regularizers.base import Regularizer

Report = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Pretraining:
    """Settings of `pretrain`."""

    steps: int = 1200
    batch: int = 16
    patch: int = 48
    learning_rate: float = 2e-3  # the peak of a one-cycle schedule
    sigma_max: float = 0.2  # noise levels are uniform in [0, sigma_max]
    clip: float = 0.1  # largest gradient norm
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "patch", "learning_rate", "sigma_max", "clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"pretrain.{name}={getattr(self, name)} must be positive")


def pretrain(
    regularizer: Regularizer, patches: Patches, settings: Pretraining, report: Report, precision: str = "float32"
) -> None:
    """Minimise the mean of ‖x − D(x + σn, σ)‖² over patches x, noise n and levels σ, in place.

    One backward pass a step: ∇h is a forward computation, so training differentiates once. `report` gets each
    step's number and its loss. Runs where the weights are; precision: of the network, see `elder.compute`. Draws come
    from the CPU, the same for every device. Raises `FloatingPointError` when the loss stops being finite.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    device = next(regularizer.parameters()).device
    regularizer.train().requires_grad_()
    optimizer = torch.optim.Adam(regularizer.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=max(settings.steps, 2), pct_start=0.1
    )
    for step in range(settings.steps):
        x = patches.draw(settings.batch, generator)
        sigma = settings.sigma_max * torch.rand(settings.batch, generator=generator)
        noisy = x + sigma.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator)
        with rounded(precision, device):
            denoised = regularizer.denoise(noisy.to(device), sigma.to(device))
        loss = (denoised - x.to(device)).square().mean()
        if not bool(loss.isfinite()):
            raise FloatingPointError(f"the loss is {float(loss)} at step {step}: lower pretrain.learning_rate")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(regularizer.parameters(), settings.clip)
        optimizer.step()
        schedule.step()
        report(step + 1, {"loss": float(loss.detach()), "learning_rate": float(schedule.get_last_lr()[0])})


@torch.no_grad()
def denoising_psnr(regularizer: Regularizer, images: Sequence[Tensor], sigma: float, seed: int = 0) -> float:
    """Mean PSNR in dB of D(x + σn, σ) over images (1, c, h, w), with noise from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.tensor(sigma)
    device = next(regularizer.parameters()).device
    noisy = [(x + sigma * torch.randn(x.shape, generator=generator)).to(device) for x in images]
    scores = [
        float(psnr(regularizer.denoise(y, level.to(device)).to(x.device), x))
        for y, x in zip(noisy, images, strict=True)
    ]
    return sum(scores) / len(scores)
