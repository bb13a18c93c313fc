"""How well a model reconstructs a set of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from elder.evaluation.quality import psnr
from elder.model.model import Model
from elder.problems.samples import Sample
from elder.solvers import Solution

# The share of solves that a model must bring to a fixed point, and the dB that a missing share of one is charged.
ENOUGH, CHARGE = 0.95, 20.0


@dataclass(frozen=True)
class Score:
    """What a model does on validation, within the steps that its evaluation takes."""

    psnr: float  # mean PSNR in dB where the solves end
    converged: float  # share of the solves that reached a fixed point

    @property
    def merit(self) -> float:
        """PSNR − 20 dB · max(0, 0.95 − share): one solve in twenty without a fixed point costs as much as 1 dB.

        Where an iteration is cut off says little of other images and other numbers of steps; yet a single solve that
        ends late must not outweigh what all the others gain.
        """
        return self.psnr - CHARGE * max(0.0, ENOUGH - self.converged)

    def beats(self, other: Score, by: float = 0.0) -> bool:
        """Whether this is the better one, by more than `by` dB of merit."""
        return self.merit > other.merit + by


def validate(model: Model, samples: Sequence[Sample]) -> tuple[Score, list[Solution]]:
    """The score, and the solution of every image."""
    solutions = [model.solve(m.operator, m.y) for m in samples]
    quality = [float(psnr(s.x, m.truth)) for s, m in zip(solutions, samples, strict=True)]
    converged = [bool(s.succeeded.all()) for s in solutions]
    return Score(sum(quality) / len(quality), sum(converged) / len(converged)), solutions
