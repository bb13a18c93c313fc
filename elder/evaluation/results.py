"""What a method makes of a set of samples, image by image and on average."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from elder.evaluation.quality import EXACT, judged, psnr, ssim
from elder.operators.misfit import relative_misfit
from elder.problems.samples import Sample
from elder.solvers.status import Status


@dataclass(frozen=True)
class Metrics:
    """The numbers of a `Result` without its pictures, which would fill the memory where there are thousands.

    PSNR in dB; the fields are those of `Result`.
    """

    row: Mapping[str, Any]
    status: Status | None
    evaluations: int | None
    ssim_initial: float
    psnr_denoised: float | None
    gap: float | None


@dataclass(frozen=True, eq=False)
class Result:
    """One image reconstructed by one method."""

    sample: Sample
    initial: Tensor  # (1, c, h, w)
    x: Tensor  # (1, c, h, w)
    steps: int
    status: Status | None  # of the solve; None for the initial guess, which takes none
    monotone: bool | None  # whether the energy never rose at an accepted step; None without an energy
    seconds: float
    evaluations: int | None = None  # of the network; None for a method without one
    denoised: Tensor | None = None  # D(x, σ) = x − ∇h(x, σ), (1, c, h, w); None for a method without a regularizer
    gap: float | None = None  # upper bound on the energy above its minimum, in units of the energy; None if unknown

    @property
    def misfit(self) -> float:
        """The data misfit ‖A x − y‖ / ‖y‖; NaN if x is not finite."""
        return float(relative_misfit(self.sample.operator, self.x, self.sample.y))

    @property
    def ssim_initial(self) -> float:
        """SSIM of the initial guess."""
        return float(ssim(self.initial, self.sample.truth))

    @property
    def metrics(self) -> Metrics:
        """The numbers alone."""
        return Metrics(self.row, self.status, self.evaluations, self.ssim_initial, self.psnr_denoised, self.gap)

    @property
    def psnr_denoised(self) -> float | None:
        """PSNR in dB of D(x), what one more step of the denoiser makes of the reconstruction."""
        return None if self.denoised is None else float(psnr(self.denoised, self.sample.truth))

    @cached_property
    def row(self) -> dict[str, Any]:
        """The metrics of this image. `misfit` is None if x is not finite."""
        truth, misfit = self.sample.truth, self.misfit
        return {
            "name": self.sample.name,
            "psnr": float(psnr(self.x, truth)),
            "ssim": float(ssim(self.x, truth)),
            "psnr_initial": float(psnr(self.initial, truth)),
            "misfit": misfit if misfit < float("inf") else None,
            "steps": self.steps,
            "status": "initial" if self.status is None else self.status.value,
            "monotone": self.monotone,
            "seconds": self.seconds,
        }


# What tables and means are made of.
Evaluated = Result | Metrics


def deviation(results: Iterable[Evaluated]) -> dict[str, float]:
    """Standard deviation over the images of PSNR and SSIM, with n − 1; zero for one image.

    That of PSNR is over the images that `mean` averages.
    """
    rows = [result.row for result in results]
    columns = {"psnr": _judged(rows), "ssim": [row["ssim"] for row in rows]}
    return {key: statistics.stdev(column) if len(column) > 1 else 0.0 for key, column in columns.items()}


def mean(results: Iterable[Evaluated]) -> dict[str, float]:
    """Mean PSNR in dB, SSIM, steps and seconds.

    The mean of PSNR is over the images whose initial guess is not exact, see `quality.judged`. `exact` counts those
    left out, if any; if every guess is exact, the mean is over all of them.
    """
    rows = [result.row for result in results]
    averages = {key: sum(row[key] for row in rows) / len(rows) for key in ("psnr", "ssim", "steps", "seconds")}
    kept, exact = _judged(rows), sum(row["psnr_initial"] >= EXACT for row in rows)
    return {**averages, "psnr": sum(kept) / len(kept), **({"exact": exact} if exact else {})}


def mean_guess(results: Iterable[Evaluated]) -> float:
    """Mean PSNR in dB of the initial guesses, over the images of `mean`."""
    guesses = [result.row["psnr_initial"] for result in results]
    return statistics.fmean(judged(guesses, guesses))


def _judged(rows: Sequence[Mapping[str, Any]]) -> Sequence[float]:
    """The PSNR that is averaged."""
    return judged([row["psnr"] for row in rows], [row["psnr_initial"] for row in rows])


def succeeded(results: Iterable[Evaluated]) -> float | None:
    """The share of the solves that reached a fixed point or a minimum; None for the initial guess, which has none."""
    solves = [result.status for result in results if result.status is not None]
    return sum(status.succeeded for status in solves) / len(solves) if solves else None
