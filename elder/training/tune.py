"""Hyperparameters λ, σ and τ of a trained regularizer on validation images: the fair state before DEQ training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from statistics import fmean

import torch

from elder.evaluation.quality import judged, psnr
from elder.model.model import Hyperparameters, Model
from elder.operators.base import Operator
from elder.problems.samples import Sample, batches, is_constrained
from elder.shapes import Images, Measurement
from elder.solvers import stops
from elder.tensors import dot
from elder.training.checkpoint import Checkpoint
from elder.training.validation import Score

# dB that a step of the search must gain. Less is within the noise of the grid: for noise-free data, λ hardly matters.
GAIN = 0.03
# What the search keeps to.
SIGMAS, LAMBDAS = (1 / 255, 1.0), (1e-7, 1e4)
# dB below its best on the way at which a solve counts as run away: its energy's minimum is far from any picture.
RUNAWAY = 3.0
# λ for noise-free data, in units of the mean eigenvalue of AᵀA. The data dominate, and the regularizer fills the rest.
NOISELESS = 0.01


@dataclass(frozen=True)
class Trial:
    """One pair tried, what it gave on validation, and the τ that the line search left."""

    lambda_reg: float
    sigma: float
    psnr: float  # mean where the solves end
    converged: float  # share of the solves
    peak_psnr: float  # mean of each solve's best on the way: what stopping early gives at most
    peak_step: float  # mean step of that best
    step: float

    @property
    def score(self) -> Score:
        """What the trial is judged by."""
        return Score(self.psnr, self.converged)


def best(trials: Sequence[Trial]) -> Trial:
    """The trial that no other beats; the first of equals."""
    return max(trials, key=lambda trial: trial.score.merit)


def starting_lambda(samples: Sequence[Sample], noise: float, sigma: float) -> float:
    """λ by the noise and the operator, before any search: s²/σ², and at least 0.01 · tr(AᵀA)/n.

    A denoiser that fits noise of level σ has x − D(x) = −σ²∇log p(x) (Tweedie; Efron 2011), so that the most probable
    picture under noise of level s minimizes ½‖A x − y‖² + (s²/σ²) h(x). The trace is estimated from one random
    picture (Hutchinson).
    """
    m = samples[0]
    z = torch.randn(m.truth.shape, generator=torch.Generator().manual_seed(0), dtype=m.truth.dtype)
    az = m.operator.A(z)
    floor = NOISELESS * float(dot(az, az).sum() / dot(z, z).sum())
    return min(max(noise**2 / sigma**2, floor, LAMBDAS[0]), LAMBDAS[1])


def edges(found: Trial, *, constrained: bool) -> list[str]:
    """The searched quantities that ended at the edge of their range: the best may lie beyond."""
    at_edge = {"σ": any(abs(found.sigma / s - 1) < 1e-6 for s in SIGMAS)}
    at_edge["λ"] = not constrained and any(abs(found.lambda_reg / w - 1) < 1e-6 for w in LAMBDAS)
    return [name for name, ended in at_edge.items() if ended]


def tune(
    model: Model,
    samples: Sequence[Sample],
    *,
    start: Hyperparameters,
    factors: Sequence[float],
    starts: Sequence[tuple[float, float]] = (),
    report: Callable[[int, Trial], None] = lambda number, trial: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[Model, list[Trial]]:
    """The model with the λ and σ of best merit (see `Score`), by a compass search in their logarithms; and all trials.

    It begins at `start`, or at the best of `starts`, pairs λ, σ, if one of them is better: a small σ can give a maximum
    of its own. From there, each factor is tried up and down in both until none helps, then the next: large factors
    bracket the best, small ones refine it. Under a hard constraint λ has no part in the minimum, and only σ is
    searched. σ stays within [1/255, 1], λ within [1e-7, 1e4]. A pair's τ starts at 1/λ, since ∇h = x − D(x) has a
    Lipschitz constant near 1, and is kept as the line search left it. `report` gets each new trial and its number. With
    a checkpoint the search resumes from the trials that were made.
    """
    trials: dict[tuple[float, float], Trial] = {}
    state = None if checkpoint is None else checkpoint.load()
    for kept in [] if state is None else state["trials"]:
        trials[_key(kept["lambda_reg"], kept["sigma"])] = Trial(**kept)

    def attempt(lambda_reg: float, sigma: float) -> Score:
        key = _key(lambda_reg, sigma)
        if key not in trials:
            trials[key] = trial_of(
                replace(model, hyperparameters=replace(start, lambda_reg=lambda_reg, sigma=sigma, step=1 / lambda_reg)),
                samples,
            )
            report(len(trials), trials[key])
            if checkpoint is not None:
                checkpoint.save(len(trials), {"trials": [asdict(trial) for trial in trials.values()]})
        return trials[key].score

    lambda_reg, sigma = _within(start.lambda_reg, LAMBDAS), _within(start.sigma, SIGMAS)
    highest = attempt(lambda_reg, sigma)
    for other in starts:
        to = _within(other[0], LAMBDAS), _within(other[1], SIGMAS)
        score = attempt(*to)
        if score.beats(highest, GAIN):
            highest, (lambda_reg, sigma) = score, to
    for factor in factors:
        moves = [(1, factor), (1, 1 / factor)]
        moves += [] if is_constrained(model.problem, samples) else [(factor, 1), (1 / factor, 1)]
        improved = True
        while improved:
            improved = False
            for w, s in moves:
                to = _within(lambda_reg * w, LAMBDAS), _within(sigma * s, SIGMAS)
                score = attempt(*to)
                if score.beats(highest, GAIN):
                    highest, (lambda_reg, sigma), improved = score, to, True
                    # What helped is tried first again.
                    moves.sort(key=lambda move: move != (w, s))
                    break
    found = best(list(trials.values()))
    tuning = replace(start, lambda_reg=found.lambda_reg, sigma=found.sigma, step=found.step)
    return replace(model, hyperparameters=tuning), list(trials.values())


@torch.no_grad()
def trial_of(model: Model, samples: Sequence[Sample]) -> Trial:
    """What the model's λ and σ give on the measurements, where the solves end and along the way.

    A solve that has run away is ended there, as one that did not converge.
    """
    rows = [
        row
        for operator, y, truth in batches(model.problem, samples, model.validation_batch)
        for row in _along(model, operator, y, truth)
    ]
    guesses, ends, converged, peaks, peak_steps, taus = (list(column) for column in zip(*rows, strict=True))
    psnr_end, peak_psnr, peak_step = (fmean(judged(column, guesses)) for column in (ends, peaks, peak_steps))
    chosen = model.hyperparameters
    return Trial(chosen.lambda_reg, chosen.sigma, psnr_end, fmean(converged), peak_psnr, peak_step, step=min(taus))


def _along(model: Model, operator: Operator, y: Measurement, truth: Images) -> list[tuple[float, ...]]:
    """A row an image: PSNR of its guess and at its end, whether it converged, its best PSNR and the step of it, τ."""
    chosen = model.hyperparameters
    # A solve starts a proximal step beyond it, which depends on λ.
    guesses = psnr(model.problem.initial(operator, y), truth).tolist()
    quality: list[list[float]] = [[] for _ in truth]
    ended: dict[int, tuple[bool, float]] = {}
    for s in islice(model.iterates(operator, y), chosen.max_steps + 1):
        now = psnr(s.x.to(truth.device), truth).tolist()
        for i, (value, why, step) in enumerate(zip(now, stops(s, chosen.tol), s.step.flatten().tolist(), strict=True)):
            if i in ended:
                continue
            quality[i].append(value)
            if why is not None or value < max(quality[i]) - RUNAWAY or len(quality[i]) > chosen.max_steps:
                ended[i] = why is not None and why.succeeded, step
        if len(ended) == len(truth):
            break
    rows = []
    for i, along in enumerate(quality):
        peak = max(range(len(along)), key=lambda k: along[k])
        rows.append((guesses[i], along[-1], float(ended[i][0]), along[peak], float(peak), ended[i][1]))
    return rows


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


def _key(lambda_reg: float, sigma: float) -> tuple[float, float]:
    return round(lambda_reg, 9), round(sigma, 9)
