"""Network evaluations to a relative energy gap of 1e-4, solver by solver: `python -m benchmarks.solvers`.

CS-MRI at 20 % and super-resolution by 3, without noise and with it, 256x256 (255x255), with pre-trained networks. The
gap is (f − f*) / (f(x0) − f*), x0 the problem's initial guess, f* where Anderson's method no longer moves. That one is
run as a reconstruction runs it, from a start that agrees with the measurement and in the metric of natural pictures;
and once more without the metric, to tell what it is worth. Counted, not timed, so that nothing else on the machine
matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.common import Row, compared, main
from elder.model.model import Model
from elder.objective import Objective
from elder.problems.samples import Sample
from elder.solvers import Anderson, Inertial, Iterate, ProximalGradient, iterates, path

GAP, MOST = 1e-4, 150
METHODS = {
    "proximal gradient": ProximalGradient(),
    "inertial": Inertial(),
    "anderson, no metric": Anderson(),
    "anderson": Anderson(),
}
# Relative residual at which f* is taken.
STILL = 1e-5
PROBLEMS = {
    "csmri 20 %": ("csmri", {"ratio": 0.2}, (256, 256)),
    "superres x3": ("superres", {"scale": 3}, (255, 255)),
    "superres x3, motion, noise 0.01": ("superres", {"scale": 3, "kernel": "motion", "noise": 0.01}, (255, 255)),
}


def run(runs: int) -> Iterator[Row]:
    """Evaluations of each method on each picture; the best method over plain proximal gradient."""
    return compared("solvers", PROBLEMS, evaluations, "proximal gradient", runs, "evaluations", 0.5)


@torch.no_grad()
def evaluations(chosen: Model, m: Sample) -> dict[str, int]:
    """How many evaluations each method took to come within the gap, or MOST."""
    objective = chosen.objective(m.operator, m.y)
    assert isinstance(objective, Objective)
    guess, step = chosen.problem.initial(m.operator, m.y), torch.tensor(chosen.hyperparameters.step)

    def until(states: Iterator[Iterate[Any]], goal: float) -> Iterator[tuple[int, float]]:
        for s in states:
            assert s.energy is not None
            yield int(s.evaluations), float(s.energy)
            if float(s.energy) <= goal or bool(s.stalled) or float(s.residual) <= STILL or int(s.evaluations) >= MOST:
                break

    own = list(until(path(objective, guess, step), -torch.inf))
    first, least = float(objective.value(guess)), min(energy for _, energy in own)
    goal = least + GAP * (first - least)
    near = objective.fidelity.prox(guess, step)
    starts = {"proximal gradient": guess, "inertial": guess, "anderson, no metric": near}
    counts = {"anderson": next(count for count, energy in own if energy <= goal)}
    for name, start in starts.items():
        *_, (counts[name], _) = until(iterates(METHODS[name], objective, start, step), goal)
    return counts


if __name__ == "__main__":
    main(run, __doc__, runs=2)
