"""What an explicit regulariser costs over a plain network: `python -m benchmarks.gradient`.

Value and gradient of the energy against one forward pass of the same network, and a pre-training step of the energy
against a plain denoiser's, with the gradient written out as a forward computation and by automatic differentiation.
All variants take turns in one process; each figure is the median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from elder import networks
from elder.regularizers import LeastSquaresResidual
from elder.regularizers.base import Energy

NETWORKS = {
    "DnCNN 64x12": {"name": "dncnn", "width": 64, "depth": 12},
    "DRUNet 32-64-128-256": {"name": "drunet", "widths": (32, 64, 128, 256), "blocks": 2},
}


class AutogradResidual(LeastSquaresResidual):
    """The same energy with the gradient that autograd makes of its value: the reference."""

    value_and_grad = Energy.value_and_grad


def main() -> None:
    """Print one table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the image for value and gradient")
    parser.add_argument("--patch", type=int, default=48, help="side of the patches of a training step")
    parser.add_argument("--batch", type=int, default=8, help="patches of a training step")
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each variant")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; medians of {arguments.runs} paired ratios")
    for title, description in NETWORKS.items():
        torch.manual_seed(0)
        network = networks.make(**description)
        print(title)
        evaluation(network, arguments.size, arguments.runs)
        training(network, arguments.patch, arguments.batch, arguments.runs)


def evaluation(network: networks.Network, size: int, runs: int) -> None:
    """Value and gradient over one forward pass, nothing recorded for training."""
    x, sigma = torch.rand(1, 1, size, size), torch.tensor(0.1)
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

    report(f"value and gradient, {size}x{size}", "forward passes", forward, written_out, by_autograd, runs)


def training(network: networks.Network, patch: int, batch: int, runs: int) -> None:
    """A pre-training step over that of a plain denoiser with the same network."""
    clean = torch.rand(batch, 1, patch, patch)
    noisy, sigma = clean + 0.1 * torch.randn_like(clean), torch.tensor(0.1)
    written, autograd = LeastSquaresResidual(network), AutogradResidual(network)

    def step(denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            network.zero_grad()
            (denoise(noisy, sigma) - clean).square().mean().backward()

        return run

    title = f"pre-training step, {batch} patches of {patch}x{patch}"
    report(title, "plain steps", step(network), step(written.denoise), step(autograd.denoise), runs)


def report(
    title: str,
    unit: str,
    reference: Callable[[], None],
    written: Callable[[], None],
    autograd: Callable[[], None],
    runs: int,
) -> None:
    """Run the three in turn and print the medians of their ratios to the reference, with the spread."""
    for warm in (reference, written, autograd):
        warm()
    ratios: dict[str, list[float]] = {"written out": [], "autograd": []}
    for _ in range(runs):
        base = timed(reference)
        ratios["written out"].append(timed(written) / base)
        ratios["autograd"].append(timed(autograd) / base)
    print(f"  {title}")
    for name, values in ratios.items():
        low, high = min(values), max(values)
        print(f"    {name:<12} {statistics.median(values):5.2f} {unit}  (from {low:.2f} to {high:.2f})")


def timed(run: Callable[[], None]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
