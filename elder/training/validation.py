"""How well a model reconstructs a set of measurements."""

from __future__ import annotations

from collections.abc import Sequence

from elder.measurements import Measured
from elder.metrics import psnr
from elder.model import Model
from elder.solvers import Solution


def reconstruct_all(model: Model, measured: Sequence[Measured]) -> tuple[float, list[Solution]]:
    """Mean PSNR in dB, and the solution of every image."""
    solutions = [model.solve(m.operator, m.y) for m in measured]
    scores = [float(psnr(s.x, m.truth)) for s, m in zip(solutions, measured, strict=True)]
    return sum(scores) / len(scores), solutions
