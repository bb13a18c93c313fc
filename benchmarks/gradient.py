"""What an explicit regularizer costs over a plain network: `python -m benchmarks.gradient`.

Value and gradient of the energy against one forward pass of the same network, and a pre-training step of the energy
against a plain denoiser's, with the gradient written out as a forward computation and by automatic differentiation.
All variants take turns in one process; each figure is the median of the ratios of neighboring runs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.common import NETWORKS, Row, main, paired, summarized
from elder import networks
from elder.regularizers import LeastSquaresResidual
from elder.regularizers.base import Energy

SIZE, PATCH, BATCH = 256, 48, 8


class AutogradResidual(LeastSquaresResidual):
    """The same energy with the gradient that autograd makes of its value: the reference."""

    value_and_grad = Energy.value_and_grad


def run(runs: int) -> list[Row]:
    """Both figures for every network."""
    rows = []
    for title, description in NETWORKS.items():
        torch.manual_seed(0)
        network = networks.make(**description)
        rows += evaluation(title, network, runs) + training(title, network, runs)
    return rows


def evaluation(title: str, network: networks.Network, runs: int) -> list[Row]:
    """Value and gradient over one forward pass, nothing recorded for training."""
    x, sigma = torch.rand(1, 1, SIZE, SIZE), torch.tensor(0.1)
    written, autograd = LeastSquaresResidual(network), AutogradResidual(network)

    @torch.no_grad()
    def forward() -> None:
        network(x, sigma)

    @torch.no_grad()
    def written_out() -> None:
        written.value_and_grad(x, sigma)

    @torch.no_grad()
    def by_autograd() -> None:
        autograd.value_and_grad(x, sigma)

    ours, theirs = paired(forward, written_out, by_autograd, runs=runs)
    case = f"value and gradient {SIZE}x{SIZE}, {title}"
    return [
        summarized("gradient", case, ours, "forward passes", 2.2),
        summarized("gradient", f"{case}, by autograd", theirs, "forward passes"),
    ]


def training(title: str, network: networks.Network, runs: int) -> list[Row]:
    """A pre-training step over that of a plain denoiser with the same network."""
    clean = torch.rand(BATCH, 1, PATCH, PATCH)
    noisy, sigma = clean + 0.1 * torch.randn_like(clean), torch.tensor(0.1)
    written, autograd = LeastSquaresResidual(network), AutogradResidual(network)

    def step(denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        def take() -> None:
            network.zero_grad()
            (denoise(noisy, sigma) - clean).square().mean().backward()

        return take

    ours, theirs = paired(step(network), step(written.denoise), step(autograd.denoise), runs=runs)
    case = f"pre-training step {BATCH} of {PATCH}x{PATCH}, {title}"
    return [
        summarized("gradient", case, ours, "plain steps", 2.6),
        summarized("gradient", f"{case}, by autograd", theirs, "plain steps"),
    ]


if __name__ == "__main__":
    main(run, __doc__, runs=15)
