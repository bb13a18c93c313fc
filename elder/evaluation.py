"""Evaluating on clean images: simulate, reconstruct, compare."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from elder.measurements import Measured
from elder.metrics import psnr, ssim
from elder.model import Model
from elder.problems.base import Problem
from elder.solvers import path
from elder.total_variation import reconstruct_tv

# The relative residual below which a solve no longer changes the picture: a tenth of what reconstructions stop at.
STILL = 1e-5


@dataclass(frozen=True, eq=False)
class Result:
    """One image reconstructed by one method."""

    measured: Measured
    initial: Tensor  # (1, c, h, w)
    x: Tensor  # (1, c, h, w)
    steps: int
    status: str
    monotone: bool | None  # the energy rose at no accepted step; None where there is no energy
    seconds: float

    @property
    def row(self) -> dict[str, Any]:
        """The figures of this image."""
        truth = self.measured.truth
        return {
            "name": self.measured.name,
            "psnr": float(psnr(self.x, truth)),
            "ssim": float(ssim(self.x, truth)),
            "psnr_initial": float(psnr(self.initial, truth)),
            "steps": self.steps,
            "status": self.status,
            "monotone": self.monotone,
            "seconds": self.seconds,
        }


Report = Callable[[Result], None]


def evaluate(model: Model, measured: Sequence[Measured], report: Report = lambda result: None) -> list[Result]:
    """Every measurement reconstructed by the model, in order."""
    results = []
    for m in measured:
        start = time.perf_counter()
        s = model.solve(m.operator, m.y)
        seconds = time.perf_counter() - start
        initial = model.problem.initial(m.operator, m.y)
        monotone = None if s.monotone is None else bool(s.monotone.all())
        results.append(Result(m, initial, s.x, int(s.steps), s.status[0].name.lower(), monotone, seconds))
        report(results[-1])
    return results


def evaluate_long(model: Model, measured: Sequence[Measured], steps: int) -> list[Result]:
    """Every measurement iterated for `steps` steps, whatever the model's tolerance.

    What training saw is a budget of steps. A model whose quality falls beyond it was fitted to where its iteration was
    cut off, not to a fixed point. A solve ends early only where it stands still, at a residual of `STILL`.
    """
    patient = replace(model.tuning, tol=STILL, max_steps=steps)
    return evaluate(replace(model, tuning=patient), measured)


def evaluate_initial(problem: Problem, measured: Sequence[Measured]) -> list[Result]:
    """Every measurement's initial guess."""
    guesses = [problem.initial(m.operator, m.y) for m in measured]
    return [Result(m, x, x, 0, "initial", None, 0.0) for m, x in zip(measured, guesses, strict=True)]


def evaluate_tv(problem: Problem, measured: Sequence[Measured], weight: float) -> list[Result]:
    """Every measurement reconstructed by total variation of weight λ."""
    results = []
    for m in measured:
        start = time.perf_counter()
        initial = problem.initial(m.operator, m.y)
        x, steps = reconstruct_tv(problem.fidelity(m.operator, m.y), initial, weight)
        # The primal-dual method is no descent method: its energy may rise on the way, and is not looked at.
        results.append(Result(m, initial, x, int(steps), "converged", None, time.perf_counter() - start))
    return results


def tune_tv(problem: Problem, measured: Sequence[Measured], weights: Sequence[float]) -> float:
    """The weight of best mean PSNR."""
    return max(weights, key=lambda weight: mean(evaluate_tv(problem, measured, weight))["psnr"])


def deviation(results: Sequence[Result]) -> dict[str, float]:
    """Standard deviation over the images of PSNR and SSIM, with n − 1; zero for one image."""
    rows = [result.row for result in results]
    return {key: statistics.stdev(row[key] for row in rows) if len(rows) > 1 else 0.0 for key in ("psnr", "ssim")}


def mean(results: Sequence[Result]) -> dict[str, float]:
    """Mean PSNR in dB, SSIM, steps and seconds."""
    rows = [result.row for result in results]
    return {key: sum(row[key] for row in rows) / len(rows) for key in ("psnr", "ssim", "steps", "seconds")}


def summary(model: Model, results: Sequence[Result]) -> dict[str, Any]:
    """What `elder evaluate` writes: problem, settings, means, the initial guess as baseline, and every image."""
    baseline = mean(evaluate_initial(model.problem, [result.measured for result in results]))
    return {
        "problem": model.problem.name,
        "settings": model.problem.settings,
        "mean": mean(results),
        "baseline": {"name": model.problem.initial_name, "psnr": baseline["psnr"], "ssim": baseline["ssim"]},
        "images": [result.row for result in results],
    }


@torch.no_grad()
def convergence(model: Model, measured: Measured, steps: int) -> list[dict[str, float | None]]:
    """Energy f(x), where there is one, PSNR and residual along the first `steps` steps of a reconstruction."""
    start = model.problem.initial(measured.operator, measured.y)
    states = path(model.objective(measured.operator, measured.y), start, torch.tensor(model.tuning.step))
    return [
        {
            "step": k,
            "energy": None if s.energy is None else float(s.energy),
            "psnr": float(psnr(s.x, measured.truth)),
            "residual": float(s.residual),
        }
        for k, s in enumerate(islice(states, steps + 1))
    ]
