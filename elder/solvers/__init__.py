"""Fixed-point solvers: one loop, and steps as values."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from elder.objective import Equilibrium, Objective
from elder.solvers.anderson import Anderson
from elder.solvers.inertial import Inertial
from elder.solvers.iterate import Iterate
from elder.solvers.loop import Solution, Status, iterates, solve
from elder.solvers.picard import AndersonMixing, Picard
from elder.solvers.proximal_gradient import ProximalGradient


def fixed_point(problem: Equilibrium, x0: Tensor, step: Tensor, *, tol: float = 1e-4, max_steps: int = 300) -> Solution:
    """`solve` by Anderson's method: safeguarded by the energy where there is one, plain where there is none."""
    if isinstance(problem, Objective):
        return solve(Anderson(), problem, x0, step, tol=tol, max_steps=max_steps)
    return solve(AndersonMixing(), problem, x0, step, tol=tol, max_steps=max_steps)


def path(problem: Equilibrium, x0: Tensor, step: Tensor) -> Iterator[Iterate]:
    """The iterates that `fixed_point` goes through, without end."""
    if isinstance(problem, Objective):
        return iterates(Anderson(), problem, x0, step)
    return iterates(AndersonMixing(), problem, x0, step)


__all__ = [
    "Anderson",
    "AndersonMixing",
    "Inertial",
    "Iterate",
    "Picard",
    "ProximalGradient",
    "Solution",
    "Status",
    "fixed_point",
    "iterates",
    "path",
    "solve",
]
