"""Network evaluations to a relative energy gap of 1e-4, solver by solver: `python -m benchmarks.solvers`.

CS-MRI at 20 % and super-resolution by 3, 256x256 (255x255), with pre-trained networks. The gap is
(f − f*) / (f(x0) − f*), f* where the Anderson solver no longer moves. Counted, not timed, so that nothing else on the
machine matters.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

from benchmarks.common import NETWORKS, WEIGHT, Row, counted, main, measured, model
from elder.objective import Objective
from elder.solvers import Anderson, Inertial, ProximalGradient, iterates
from elder.solvers.loop import Method

GAP, MOST = 1e-4, 150
# Relative residual at which f* is taken.
STILL = 3e-6
PROBLEMS = {"csmri 20 %": ("csmri", {"ratio": 0.2}, (256, 256)), "superres x3": ("superres", {"scale": 3}, (255, 255))}
METHODS = {"proximal gradient": ProximalGradient(), "inertial": Inertial(), "anderson": Anderson()}


def run(runs: int) -> list[Row]:
    """Evaluations of each method on each picture; the best method over plain proximal gradient."""
    rows = []
    for label, (problem, settings, size) in PROBLEMS.items():
        for title in NETWORKS:
            chosen = model(title, problem, **settings)
            found: dict[str, list[int]] = {name: [] for name in METHODS}
            for m in measured(chosen, size)[:runs]:
                for name, count in evaluations(chosen, m).items():
                    found[name].append(count)
            means = {name: statistics.mean(counts) for name, counts in found.items()}
            case = f"{label}, {title}"
            rows += [counted("solvers", f"{case}, {name}", mean, "evaluations") for name, mean in means.items()]
            best = min(list(means)[1:], key=lambda name: means[name])
            shares = [b / p for b, p in zip(found[best], found["proximal gradient"], strict=True)]
            share = means[best] / means["proximal gradient"]
            rows.append(Row("solvers", f"{case}, {best} of plain", share, "", min(shares), max(shares), 0.5))
    return rows


@torch.no_grad()
def evaluations(chosen, m) -> dict[str, int]:
    """How many evaluations each method took to come within the gap, or to where it no longer moved short of it."""
    objective = chosen.objective(m.operator, m.y)
    assert isinstance(objective, Objective)
    start, step = chosen.problem.initial(m.operator, m.y), torch.tensor(1 / WEIGHT)

    def path(method: Method) -> Iterator[tuple[int, float, bool]]:
        for s in iterates(method, objective, start, step):
            assert s.energy is not None
            still = bool(s.stalled) or float(s.residual) <= STILL or int(s.evaluations) >= MOST
            yield int(s.evaluations), float(s.energy), still
            if still:
                break

    reference = list(path(METHODS["anderson"]))
    least = min(energy for _, energy, _ in reference)
    goal = least + GAP * (reference[0][1] - least)
    counts = {"anderson": next(count for count, energy, _ in reference if energy <= goal)}
    for name in ("proximal gradient", "inertial"):
        for count, energy, _ in path(METHODS[name]):
            counts[name] = count
            if energy <= goal:
                break
    return counts


if __name__ == "__main__":
    main(run, __doc__, runs=2)
