"""Peak memory of one fine-tuning step, at 40 and at 400 forward iterations: `python -m benchmarks.memory`.

DnCNN 32x6, 4 pictures of 96x96. Each count runs in a process of its own, since a process's peak never falls. The
tolerance is set out of reach, so that every image takes all its iterations.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys

from benchmarks.common import Row, counted, main

COUNTS = (40, 400)
# glibc gives freed blocks of this size back at once: the peak is of what is in use, not of what the allocator hoards.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def run(runs: int) -> list[Row]:
    """The peak at either count, and their ratio."""
    peaks = {}
    for count in COUNTS:
        command = [sys.executable, "-m", "benchmarks.memory", "--iterations", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **ALLOCATOR})
        steps, peaks[count] = map(int, done.stdout.split())
        assert steps == count
    rows = [
        counted("memory", f"peak at {count} forward iterations", peak / 1024, "MiB") for count, peak in peaks.items()
    ]
    ratio = peaks[COUNTS[1]] / peaks[COUNTS[0]]
    return [*rows, counted("memory", f"peak at {COUNTS[1]} over {COUNTS[0]} iterations", ratio, "", 1.05)]


def finetuning_step(iterations: int, size: int = 96, batch: int = 4) -> int:
    """Forward solve of exactly `iterations` steps, then the implicit gradient; the steps taken."""
    import torch

    from elder import problems, regularizers
    from elder.fidelity import LeastSquares
    from elder.implicit import ImplicitGradient
    from elder.linear import MINRES
    from elder.objective import Objective
    from elder.regularizers.base import Energy
    from elder.solvers import ProximalGradient, solve

    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    energy = regularizers.make("least_squares", {"name": "dncnn", "width": 32, "depth": 6})
    assert isinstance(energy, Energy)
    x = torch.rand((batch, 1, size, size), generator=generator)
    problem = problems.make("csmri", {"ratio": 0.3})
    operator, y = problem.simulate(x, generator)
    weight = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)
    objective = Objective(LeastSquares.of(operator, y), energy, weight, torch.tensor(0.1))
    # A short step keeps every iterate moving: no solve ends early.
    method, step = ProximalGradient(), torch.tensor(0.5)
    solution = solve(method, objective, operator.AT(y), step, tol=1e-30, max_steps=iterations)
    fixed_point, _ = ImplicitGradient(MINRES(tol=1e-6, max_steps=30)).attach(objective, solution.x, solution.step)
    (fixed_point - x).square().mean().backward(inputs=[*energy.parameters(), weight])
    return int(solution.steps.min())


if __name__ == "__main__":
    if "--iterations" in sys.argv:
        print(finetuning_step(int(sys.argv[-1])), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    else:
        main(run, __doc__, runs=1)
