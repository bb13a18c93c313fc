"""How well a model reconstructs a set of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from elder.measurements import Measured
from elder.metrics import psnr
from elder.model import Model
from elder.solvers import Solution


@dataclass(frozen=True)
class Score:
    """What a model does on validation: mean PSNR in dB, and whether every solve reached a fixed point."""

    psnr: float
    converged: bool

    def beats(self, other: Score, by: float = 0.0) -> bool:
        """Whether this is the better one, by more than `by` dB; one whose solves converge is better at any PSNR.

        Where an iteration is cut off says nothing of fixed points, nor of other images and other numbers of steps.
        """
        if self.converged != other.converged:
            return self.converged
        return self.psnr > other.psnr + by


def validate(model: Model, measured: Sequence[Measured]) -> tuple[Score, list[Solution]]:
    """The score, and the solution of every image."""
    solutions = [model.solve(m.operator, m.y) for m in measured]
    quality = [float(psnr(s.x, m.truth)) for s, m in zip(solutions, measured, strict=True)]
    converged = all(bool(s.usable.all()) for s in solutions)
    return Score(sum(quality) / len(quality), converged), solutions
