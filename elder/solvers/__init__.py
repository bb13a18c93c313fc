"""Fixed-point solvers: one loop, and steps as values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from time import monotonic

import torch

from elder.objective import Equilibrium
from elder.shapes import Counts, Images, OneOrEach
from elder.solvers.anderson import Anderson
from elder.solvers.history import History
from elder.solvers.inertial import Inertial
from elder.solvers.iterate import Iterate
from elder.solvers.line_search import LineSearch
from elder.solvers.loop import Solution, iterates, solve, stops
from elder.solvers.picard import AndersonMixing, Picard
from elder.solvers.proximal_gradient import ProximalGradient
from elder.solvers.status import Status

# Where a rough solve stops: below, what it finds is the rounding of its precision.
ROUGH = 1e-2


def fixed_point(
    problem: Equilibrium,
    x0: Images,
    step: OneOrEach,
    *,
    tol: float = 1e-4,
    max_steps: int = 300,
    precision: str = "float32",
    time_limit: float = math.inf,
) -> Solution:
    """Solve for the fixed points with Anderson's method. If there is an energy, it safeguards the steps.

    If the data term has a closed form for it, steps are measured in the metric of natural images. This saves up to a
    third of the steps. To warm-start from an earlier reconstruction, call `solve`.

    Args:
        problem: the equation to solve, or an `Objective`, which has an energy.
        x0: an initial guess from the measurement alone, (b, c, h, w). The solve starts from prox_{τg}(x0), which agrees
            with the measurement and costs no network evaluation.
        step: the first step size τ > 0, (b,) or scalar.
        tol: relative fixed-point residual at which an image stops.
        max_steps: at which every image stops.
        precision: see `elder.backend`. Below float32, plain mixing in that precision first brings the start near. The
            start is kept where this lowered the energy. Then float32 polishes it.
        time_limit: in seconds, of both parts together, see `solve`.

    Returns:
        The last iterates, with a `Status` for each image. Evaluations are counted over both parts, other statistics
        are those of the polish.
    """
    deadline = monotonic() + time_limit
    start, spent = _start(problem, x0, step), 0
    problem = problem.with_natural_metric()
    if precision != "float32":
        start, spent = _rough(problem, start, step, tol, max_steps, precision, deadline)
    left = deadline - monotonic()
    if (objective := problem.objective) is not None:
        solution = solve(Anderson(), objective, start, step, tol=tol, max_steps=max_steps, time_limit=left)
    else:
        solution = solve(AndersonMixing(), problem, start, step, tol=tol, max_steps=max_steps, time_limit=left)
    return replace(solution, evaluations=solution.evaluations + spent)


@torch.no_grad()
def _rough(
    problem: Equilibrium, x0: Images, step: OneOrEach, tol: float, max_steps: int, precision: str, deadline: float
) -> tuple[Images, Counts]:
    """Where the polish starts, and the evaluations spent on it."""
    equation = problem.equation(precision)
    left = deadline - monotonic()
    rough = solve(AndersonMixing(), equation, x0, step, tol=max(tol, ROUGH), max_steps=max_steps, time_limit=left)
    good = rough.x.flatten(1).isfinite().all(1)
    if (objective := problem.objective) is not None:
        good &= objective.value(rough.x) < objective.value(x0)
    return torch.where(good.view(-1, 1, 1, 1), rough.x, x0), rough.evaluations


def path(problem: Equilibrium, x0: Images, step: OneOrEach) -> Iterator[Iterate[History]]:
    """The iterates that `fixed_point` goes through in float32, without end."""
    start, problem = _start(problem, x0, step), problem.with_natural_metric()
    if (objective := problem.objective) is not None:
        return iterates(Anderson(), objective, start, step)
    return iterates(AndersonMixing(), problem, start, step)


@torch.no_grad()
def _start(problem: Equilibrium, x0: Images, step: OneOrEach) -> Images:
    return problem.fidelity.prox(x0, step.to(x0.device))


__all__ = [
    "Anderson",
    "AndersonMixing",
    "Inertial",
    "Iterate",
    "LineSearch",
    "Picard",
    "ProximalGradient",
    "Solution",
    "Status",
    "fixed_point",
    "iterates",
    "path",
    "solve",
    "stops",
]
