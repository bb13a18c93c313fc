"""Baselines: the initial guess and total variation."""

from __future__ import annotations

import time
from collections.abc import Sequence

from elder.evaluation.results import Result, mean
from elder.problems.base import Problem
from elder.problems.samples import Sample
from elder.solvers.primal_dual import reconstruct_tv


def evaluate_initial(problem: Problem, samples: Sequence[Sample]) -> list[Result]:
    """Every measurement's initial guess."""
    guesses = [problem.initial(m.operator, m.y) for m in samples]
    return [Result(m, x, x, 0, "initial", None, 0.0) for m, x in zip(samples, guesses, strict=True)]


def evaluate_tv(problem: Problem, samples: Sequence[Sample], lambda_reg: float) -> list[Result]:
    """Every measurement reconstructed by total variation with the regularization parameter λ > 0."""
    results = []
    for m in samples:
        start = time.perf_counter()
        initial = problem.initial(m.operator, m.y)
        x, steps = reconstruct_tv(problem.fidelity(m.operator, m.y), initial, lambda_reg)
        # The primal-dual method is no descent method: its energy may rise on the way, and is not looked at.
        results.append(Result(m, initial, x, int(steps), "converged", None, time.perf_counter() - start))
    return results


def tune_tv(problem: Problem, samples: Sequence[Sample], candidates: Sequence[float]) -> float:
    """The regularization parameter λ of best mean PSNR among the candidates."""
    return max(candidates, key=lambda lambda_reg: mean(evaluate_tv(problem, samples, lambda_reg))["psnr"])
