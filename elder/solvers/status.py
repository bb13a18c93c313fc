"""How a solve ended."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """How the solve of one image ended."""

    CONVERGED = "converged"
    PRECISION = "precision"
    MAX_STEPS = "max_steps"
    TIME_LIMIT = "time_limit"
    STALLED = "stalled"
    NOT_FINITE = "not_finite"

    @property
    def succeeded(self) -> bool:
        """Whether the solve reached a fixed point: to the tolerance, or to the precision of the arithmetic."""
        return self in (Status.CONVERGED, Status.PRECISION)

    @property
    def advice(self) -> str:
        """What it means, and what to do about it."""
        return ADVICE[self]


ADVICE = {
    Status.CONVERGED: "the fixed-point residual is within the tolerance",
    Status.PRECISION: "the energy can't be lowered further in this precision: no fault; a larger tol ends sooner",
    Status.MAX_STEPS: "stopped before the tolerance was met: raise max_steps, or use a larger tol",
    Status.TIME_LIMIT: "stopped at the time limit, before the tolerance was met: allow more time, or use a larger tol",
    Status.STALLED: "no step was found that lowers the energy, which is far from smooth here: train on, or lower λ",
    Status.NOT_FINITE: "the iterates left the finite numbers: check the measurement, and lower the step or λ",
}
