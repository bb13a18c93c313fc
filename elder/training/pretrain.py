"""Pre-training: fit D = I − ∇h_θ(·, σ) to clean patches under Gaussian noise of random level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from elder.backend import autocast, tensor_float
from elder.errors import UserError
from elder.evaluation.quality import psnr
from elder.regularizers.base import Regularizer
from elder.training.averaging import moving_average
from elder.training.checkpoint import Checkpoint
from elder.training.draws import Ahead
from elder.training.history import History, Report, Trained, silent
from elder.training.patches import Patches
from elder.training.processes import ALONE, Processes

# Steps of the shortest one-cycle schedule: in shorter ones the rise would have no step.
SHORTEST = 20


@dataclass(frozen=True)
class Pretraining:
    """Settings of `pretrain`.

    Raises `UserError`, which names the setting, for a number out of its range or an empty `init`.
    """

    init: str = "released"  # where the weights start: none, released, or the folder of a bundle; see `initial`
    steps: int = 700  # from random weights
    refine_steps: int = 50  # of the training that continues from a trained denoiser
    batch: int = 4
    patch: int = 48
    learning_rate: float = 2e-3  # the peak of a one-cycle schedule
    refine_rate: float = 1e-4  # that peak, from a trained denoiser
    sigma_max: float = 0.2  # noise levels are uniform in [0, sigma_max]
    clip: float = 0.1  # largest gradient norm
    average: float = 0.99  # decay of the moving average of the weights, which training returns; 0: the last ones
    seed: int = 2

    def __post_init__(self) -> None:
        if not self.init:
            raise UserError("init='' must be none, released, or the folder of a bundle")
        for name in ("steps", "refine_steps", "batch", "patch", "learning_rate", "refine_rate", "sigma_max", "clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}={getattr(self, name)} must be positive")
        if not 0 <= self.average < 1:
            raise UserError(f"average={self.average} must be in [0, 1)")

    def refining(self) -> Pretraining:
        """The settings of the training that continues from a trained denoiser: few steps, at a low rate."""
        return replace(self, steps=self.refine_steps, learning_rate=self.refine_rate)


def pretrain(
    regularizer: Regularizer,
    patches: Patches,
    settings: Pretraining,
    report: Report = silent,
    *,
    precision: str = "float32",
    patience: int = 10,
    checkpoint: Checkpoint | None = None,
    processes: Processes = ALONE,
) -> Trained[Regularizer]:
    """Minimize the mean of ‖x − D(x + σn, σ)‖² over patches x, noise n and levels σ, in place.

    Returns the regularizer with the metrics of each step; `report` gets them while training runs. One backward pass a
    step: ∇h is a forward computation, so training differentiates once. Runs where the weights are; draws come
    from the CPU, the same for every device. precision: of the network, see `elder.backend`. With a checkpoint, training
    resumes where the last run stopped, and returns the metrics of all steps. A step whose gradient is not finite is
    left out and counted. Raises `FloatingPointError` after `patience` of them in a row. processes: those that share
    each batch, in parts that bound the memory; the first one alone is given the checkpoint.
    """
    processes.check_batch(settings.batch)
    generator = torch.Generator().manual_seed(settings.seed)
    device = next(regularizer.parameters()).device
    regularizer.train().requires_grad_()
    averaged = moving_average(regularizer, settings.average)
    optimizer = torch.optim.Adam(regularizer.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=max(settings.steps, SHORTEST), pct_start=0.1
    )
    parts = {"regularizer": regularizer, "averaged": averaged, "optimizer": optimizer, "schedule": schedule}
    first, failures, history = 1, 0, History()
    state = processes.from_first(None if checkpoint is None else checkpoint.load())
    if state is not None:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        generator.set_state(state["generator"])
        first, failures, history = state["step"] + 1, state["failures"], History(state["history"])

    def make(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        x = patches.draw(settings.batch, generator)
        sigma = settings.sigma_max * torch.rand(settings.batch, generator=generator)
        return x, sigma, x + sigma.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator)

    with Ahead(make, generator, settings.steps) as draws:
        for step in range(first, settings.steps + 1):
            x, sigma, noisy = draws.take(step)
            optimizer.zero_grad()
            own, loss = len(x[processes.share(settings.batch)]), x.new_zeros(1, device=device)
            for part in processes.parts(settings.batch):
                clean = x[part].to(device)
                with autocast(precision, device):
                    denoised = regularizer.denoise(noisy[part].to(device), sigma[part].to(device))
                error = len(clean) / own * (denoised - clean).square().mean()
                with tensor_float(precision):
                    error.backward()
                loss += error.detach()
            weight = own / settings.batch
            processes.average_gradients(regularizer.parameters(), weight)
            norm = torch.nn.utils.clip_grad_norm_(regularizer.parameters(), settings.clip)
            metrics = {"gradient_norm": float(norm), "learning_rate": float(schedule.get_last_lr()[0])}
            failures = 0 if bool(norm.isfinite()) else failures + 1
            if failures == 0:
                metrics["loss"] = float(processes.gather(weight * loss, processes.count).sum())
                optimizer.step()
                schedule.step()
                averaged.update_parameters(regularizer)
            elif failures >= patience:
                raise FloatingPointError(f"no finite gradient in {failures} steps in a row: lower the learning rate")
            metrics["skipped"] = float(failures > 0)
            history.append(step, metrics)
            report(step, metrics)
            if checkpoint is not None:
                state = {"step": step, "failures": failures, "generator": draws.state}
                state["history"] = history.rows
                checkpoint.save(step, state | {name: part.state_dict() for name, part in parts.items()})
    regularizer.load_state_dict(averaged.module.state_dict())
    return Trained(regularizer, history)


@torch.no_grad()
def denoising_psnr(regularizer: Regularizer, images: Sequence[Tensor], sigma: float, seed: int = 0) -> float:
    """Mean PSNR in dB of D(x + σn, σ) over images (1, c, h, w), with noise from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.tensor(sigma)
    device = next(regularizer.parameters()).device
    scores = []
    for x in images:
        noisy = (x + sigma * torch.randn(x.shape, generator=generator)).to(device)
        scores.append(float(psnr(regularizer.denoise(noisy, level.to(device)).to(x.device), x)))
    return sum(scores) / len(scores)
