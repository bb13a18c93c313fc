"""Tuning λ, σ and τ of a trained regulariser on validation images: the fair state before DEQ training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from elder.fidelity import HardConstraint
from elder.measurements import Measured
from elder.model import Model, Tuning
from elder.training.checkpoint import Checkpoint
from elder.training.validation import Score, validate

# dB that a step of the search must gain: less is the grid's noise, and λ is nearly free where there is no noise.
GAIN = 0.03


@dataclass(frozen=True)
class Trial:
    """One pair tried, what it gave on validation, and the τ that the line search left."""

    weight: float
    sigma: float
    psnr: float
    converged: bool  # every solve
    step: float

    @property
    def score(self) -> Score:
        return Score(self.psnr, self.converged)


def best(trials: Sequence[Trial]) -> Trial:
    """The trial that no other beats; the first of equals."""
    found = trials[0]
    for trial in trials:
        found = trial if trial.score.beats(found.score) else found
    return found


def tune(
    model: Model,
    measured: Sequence[Measured],
    *,
    start: Tuning,
    factors: Sequence[float] = (3.0,),
    report: Callable[[int, Trial], None] = lambda number, trial: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[Model, list[Trial]]:
    """The model with the λ and σ of best mean PSNR, by a compass search in their logarithms; and all trials.

    Pairs with which every solve converges come before all others: DEQ training is for fixed points. From `start`, each
    factor is tried up and down in both until none helps, then the next. Under a hard constraint λ has no part in the
    minimum, and only σ is searched. σ stays within [1/255, 1]. A pair's τ starts at 1/λ, since ∇h = x − D(x) has a
    Lipschitz constant near 1, and is kept as the line search left it. `report` gets each new trial and its number.
    With a checkpoint the search goes on where the last one stopped.
    """
    trials: dict[tuple[float, float], Trial] = {}
    state = None if checkpoint is None else checkpoint.load()
    for kept in [] if state is None else state["trials"]:
        trials[_key(kept["weight"], kept["sigma"])] = Trial(**kept)

    def attempt(weight: float, sigma: float) -> Score:
        sigma = min(max(sigma, 1 / 255), 1.0)
        key = _key(weight, sigma)
        if key not in trials:
            tuning = replace(start, weight=weight, sigma=sigma, step=1 / weight)
            score, solutions = validate(replace(model, tuning=tuning), measured)
            accepted = min(float(s.step.min()) for s in solutions)
            trials[key] = Trial(weight, sigma, score.psnr, score.converged, accepted)
            report(len(trials), trials[key])
            if checkpoint is not None:
                checkpoint.save(len(trials), {"trials": [asdict(trial) for trial in trials.values()]})
        return trials[key].score

    weight, sigma = start.weight, start.sigma
    highest = attempt(weight, sigma)
    constrained = isinstance(model.problem.fidelity(measured[0].operator, measured[0].y), HardConstraint)
    for factor in factors:
        moves = [(1, factor), (1, 1 / factor)] + ([] if constrained else [(factor, 1), (1 / factor, 1)])
        improved = True
        while improved:
            improved = False
            for w, s in moves:
                score = attempt(weight * w, sigma * s)
                if score.beats(highest, GAIN):
                    highest, weight, sigma, improved = score, weight * w, min(max(sigma * s, 1 / 255), 1.0), True
                    # What helped is tried first again.
                    moves.sort(key=lambda move: move != (w, s))
                    break
    found = best(list(trials.values()))
    tuning = replace(start, weight=found.weight, sigma=found.sigma, step=found.step)
    return replace(model, tuning=tuning), list(trials.values())


def _key(weight: float, sigma: float) -> tuple[float, float]:
    return round(weight, 9), round(sigma, 9)
