"""What a method makes of a set of samples, image by image and on average."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from elder.evaluation.quality import psnr, ssim
from elder.problems.samples import Sample


@dataclass(frozen=True, eq=False)
class Result:
    """One image reconstructed by one method."""

    sample: Sample
    initial: Tensor  # (1, c, h, w)
    x: Tensor  # (1, c, h, w)
    steps: int
    status: str
    monotone: bool | None  # whether the energy never rose at an accepted step; None without an energy
    seconds: float

    @property
    def row(self) -> dict[str, Any]:
        """The metrics of this image."""
        truth = self.sample.truth
        return {
            "name": self.sample.name,
            "psnr": float(psnr(self.x, truth)),
            "ssim": float(ssim(self.x, truth)),
            "psnr_initial": float(psnr(self.initial, truth)),
            "steps": self.steps,
            "status": self.status,
            "monotone": self.monotone,
            "seconds": self.seconds,
        }


def deviation(results: Sequence[Result]) -> dict[str, float]:
    """Standard deviation over the images of PSNR and SSIM, with n − 1; zero for one image."""
    rows = [result.row for result in results]
    return {key: statistics.stdev(row[key] for row in rows) if len(rows) > 1 else 0.0 for key in ("psnr", "ssim")}


def mean(results: Sequence[Result]) -> dict[str, float]:
    """Mean PSNR in dB, SSIM, steps and seconds."""
    rows = [result.row for result in results]
    return {key: sum(row[key] for row in rows) / len(rows) for key in ("psnr", "ssim", "steps", "seconds")}
