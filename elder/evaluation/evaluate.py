"""Reconstruct a set of samples with a model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from elder.evaluation.quality import psnr
from elder.evaluation.results import Evaluated, Result, mean, mean_guess
from elder.model.model import Model
from elder.problems.samples import Sample

# The relative residual below which a solve no longer changes the picture: a tenth of what reconstructions stop at.
STILL = 1e-5


def evaluate(model: Model, samples: Iterable[Sample]) -> Iterator[Result]:
    """Every measurement reconstructed by the model, in order; each when it is asked for."""
    for m in samples:
        start = time.perf_counter()
        s = model.solve(m.operator, m.y)
        seconds = time.perf_counter() - start
        initial = model.problem.initial(m.operator, m.y)
        monotone = None if s.monotone is None else bool(s.monotone.all())
        denoised = denoise(model, s.x)
        yield Result(m, initial, s.x, int(s.steps), s.status[0], monotone, seconds, int(s.evaluations), denoised)


@torch.no_grad()
def denoise(model: Model, x: Tensor) -> Tensor:
    """D(x, σ) at the σ of the model, (b, c, h, w), on the device of x.

    It is one more step of the denoiser after a reconstruction, as Zou et al. 2023 report it for super-resolution.
    """
    sigma = torch.tensor(model.hyperparameters.sigma, device=model.device)
    return model.regularizer.denoise(x.to(model.device), sigma).to(x.device)


def evaluate_long(model: Model, samples: Iterable[Sample], steps: int) -> Iterator[Result]:
    """Every measurement iterated for `steps` steps, whatever the model's tolerance.

    What training saw is a budget of steps. A model whose quality falls beyond it was fitted to where its iteration was
    cut off, not to a fixed point. A solve ends early only where it stands still, at a residual of `STILL`.
    """
    patient = replace(model.hyperparameters, tol=STILL, max_steps=steps)
    return evaluate(replace(model, hyperparameters=patient), samples)


def summary(model: Model, results: Sequence[Evaluated]) -> dict[str, Any]:
    """What `elder evaluate` writes: problem, settings, means, the initial guess as baseline, and every image."""
    ssims = [result.ssim_initial for result in results]
    baseline = {"psnr": mean_guess(results), "ssim": sum(ssims) / len(ssims)}
    return {
        "problem": model.problem.name,
        "settings": model.problem.settings,
        "mean": mean(results),
        "baseline": {"name": model.problem.initial_name, **baseline},
        "images": [result.row for result in results],
    }


@torch.no_grad()
def convergence(model: Model, sample: Sample, steps: int) -> list[dict[str, float | None]]:
    """Energy f(x), PSNR and residual along the first `steps` steps of a reconstruction.

    The energy is `None` for an implicit regularizer.
    """
    return [
        {
            "step": k,
            "energy": None if s.energy is None else float(s.energy),
            "psnr": float(psnr(s.x.to(sample.truth.device), sample.truth)),
            "residual": float(s.residual),
        }
        for k, s in enumerate(islice(model.iterates(sample.operator, sample.y), steps + 1))
    ]
