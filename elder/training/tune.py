"""Tuning λ, σ and τ of a trained regulariser on validation images: the fair state before DEQ training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from elder.measurements import Measured
from elder.model import Model, Tuning
from elder.training.validation import reconstruct_all

# dB that a step of the search must gain: less is the grid's noise, and λ is nearly free where there is no noise.
GAIN = 0.01


@dataclass(frozen=True)
class Trial:
    """One pair tried, and what it gave on validation."""

    weight: float
    sigma: float
    psnr: float


def tune(
    model: Model,
    measured: Sequence[Measured],
    *,
    start: Tuning,
    factors: Sequence[float] = (3.0,),
    report: Callable[[Trial], None] = lambda trial: None,
) -> tuple[Model, list[Trial]]:
    """The model with the λ and σ of best mean PSNR, by a compass search in their logarithms; and all trials.

    From `start`, each factor is tried up and down in both until none helps, then the next. σ stays within
    [1/255, 1]. A pair's τ starts at 1/λ, since ∇h = x − D(x) has a Lipschitz constant near 1, and is kept as the
    line search left it.
    """
    trials: dict[tuple[float, float], tuple[Trial, Tuning]] = {}

    def attempt(weight: float, sigma: float) -> float:
        sigma = min(max(sigma, 1 / 255), 1.0)
        key = (round(weight, 9), round(sigma, 9))
        if key not in trials:
            tuning = replace(start, weight=weight, sigma=sigma, step=1 / weight)
            score, solutions = reconstruct_all(replace(model, tuning=tuning), measured)
            accepted = min(float(s.step.min()) for s in solutions)
            trials[key] = Trial(weight, sigma, score), replace(tuning, step=accepted)
            report(trials[key][0])
        return trials[key][0].psnr

    weight, sigma = start.weight, start.sigma
    best = attempt(weight, sigma)
    for factor in factors:
        moves = [(1, factor), (1, 1 / factor), (factor, 1), (1 / factor, 1)]
        improved = True
        while improved:
            improved = False
            for w, s in moves:
                score = attempt(weight * w, sigma * s)
                if score > best + GAIN:
                    best, weight, sigma, improved = score, weight * w, min(max(sigma * s, 1 / 255), 1.0), True
                    # What helped is tried first again.
                    moves.sort(key=lambda move: move != (w, s))
                    break
    tuning = max(trials.values(), key=lambda pair: pair[0].psnr)[1]
    return replace(model, tuning=tuning), [trial for trial, _ in trials.values()]
