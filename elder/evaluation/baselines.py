"""Baselines: the initial guess and total variation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from elder.evaluation.results import Result, mean
from elder.problems.base import Problem
from elder.problems.samples import Sample, is_constrained
from elder.solvers.primal_dual import reconstruct_tv
from elder.solvers.status import Status

# The gap, in units of the energy, at which total variation stops, and at which the search for λ stops. On photographs
# PSNR is then within 0.01 and 0.03 dB of that of the minimum.
TOL, SEARCH_TOL = 2e-3, 1e-2
# dB by which a smaller λ must be better to be preferred. Without noise, PSNR hardly depends on λ where it is small.
GAIN = 0.03
# How often the grid of λ is widened, and by which factor if it has one λ.
WIDENINGS, FACTOR = 4, 3.0


def evaluate_initial(problem: Problem, samples: Iterable[Sample]) -> Iterator[Result]:
    """Every measurement's initial guess, in order; each when it is asked for."""
    for m in samples:
        x = problem.initial(m.operator, m.y)
        yield Result(m, x, x, 0, None, None, 0.0)


def evaluate_tv(
    problem: Problem, samples: Iterable[Sample], lambda_reg: float, *, tol: float = TOL
) -> Iterator[Result]:
    """Every measurement reconstructed by total variation with λ > 0, in order; each when it is asked for.

    tol: the primal-dual gap in units of the energy at which a solve is converged.
    """
    for m in samples:
        start = time.perf_counter()
        initial = problem.initial(m.operator, m.y)
        s = reconstruct_tv(problem.fidelity(m.operator, m.y), initial, lambda_reg, tol=tol)
        seconds = time.perf_counter() - start
        # The primal-dual method is no descent method: its energy may rise on the way, and is not looked at.
        gap = float(s.gap / s.energy) if s.energy > 0 else 0.0  # no energy is below zero
        yield Result(m, initial, s.x, int(s.steps), s.status[0], None, seconds, gap=gap)


def tune_tv(
    problem: Problem,
    samples: Sequence[Sample],
    candidates: Sequence[float],
    report: Callable[[str], None] = lambda line: None,
) -> float:
    """The regularization parameter λ of best mean PSNR on the samples, from a grid that is widened if it is too narrow.

    Of the λ within 0.03 dB of the best, the largest is taken. While it is an edge of the grid and better than its
    neighbor by more than that, the grid is widened there, at most four times. Then the geometric means of λ and its
    neighbors are tried. A λ whose solves fail is never taken. Where λ has no effect, under a hard constraint or because
    all are within 0.03 dB, the middle candidate is taken. `report` gets one line if the grid was widened, or if all are
    within 0.03 dB.

    Raises:
        ArithmeticError: if solves fail for every λ.
    """
    grid = sorted(set(candidates))
    if is_constrained(problem, samples):
        return grid[len(grid) // 2]
    scores = {value: _score(problem, samples, value) for value in grid}
    first = _best(scores)
    if len(grid) > 1 and max(scores.values()) - min(scores.values()) <= GAIN:
        report(f"total variation: every λ gives {scores[first]:.2f} dB on validation; λ = {grid[len(grid) // 2]:g}")
        return grid[len(grid) // 2]
    for _ in range(WIDENINGS):
        beyond = _beyond(scores)
        if not beyond:
            break
        scores.update((value, _score(problem, samples, value)) for value in beyond)
    if len(scores) > len(grid):
        still = "; the best may lie beyond" if _beyond(scores) else ""
        report(
            f"total variation: λ = {first:g} is at the edge of the grid, which was widened to "
            f"{min(scores):g} ... {max(scores):g}{still}"
        )
    if max(scores.values()) == -math.inf:
        raise ArithmeticError("total variation: solves failed for every λ")
    found, tried = _best(scores), sorted(scores)
    place = tried.index(found)
    between = [math.sqrt(found * other) for other in tried[max(0, place - 1) : place + 2] if other != found]
    scores.update((value, _score(problem, samples, value)) for value in between)
    return _best(scores)


def _best(scores: Mapping[float, float]) -> float:
    """The largest λ within 0.03 dB of the best."""
    return max(value for value, score in scores.items() if score >= max(scores.values()) - GAIN)


def _beyond(scores: Mapping[float, float]) -> list[float]:
    """The λ to try beyond the edges of the grid; none if the best λ is inside, or no better than its neighbor."""
    grid, found = sorted(scores), _best(scores)
    if len(grid) == 1:
        return [found / FACTOR, found * FACTOR]
    edges = {grid[0]: (grid[1], grid[0] ** 2 / grid[1]), grid[-1]: (grid[-2], grid[-1] ** 2 / grid[-2])}
    if found not in edges:
        return []
    neighbor, next_one = edges[found]
    return [next_one] if scores[found] > scores[neighbor] + GAIN else []


def _score(problem: Problem, samples: Sequence[Sample], lambda_reg: float) -> float:
    """Mean PSNR in dB, see `results.mean`; minus infinity if a solve fails or its picture is not finite."""
    try:
        results = [result.metrics for result in evaluate_tv(problem, samples, lambda_reg, tol=SEARCH_TOL)]
    except ArithmeticError:  # a small λ makes steps long, and conjugate gradients too slow
        return -math.inf
    if any(result.status is Status.NOT_FINITE for result in results):
        return -math.inf
    return mean(results)["psnr"]
