"""Peak memory of one fine-tuning step, at 40 and at 400 forward iterations: `python -m benchmarks.memory`.

Each count runs in a process of its own, since a process's peak never falls. The tolerance is set out of reach, so that
every image takes all its iterations.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys

COUNTS = (40, 400)
# glibc gives freed blocks of this size back at once: the peak is of what is in use, not of what the allocator hoards.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main() -> None:
    """Print the peak of each count and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, help="measure one count, in this process")
    parser.add_argument("--size", type=int, default=96, help="side of the images (default: 96)")
    parser.add_argument("--batch", type=int, default=4, help="images in the step (default: 4)")
    arguments = parser.parse_args()
    if arguments.iterations:
        steps = finetuning_step(arguments.iterations, arguments.size, arguments.batch)
        print(steps, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    peaks = []
    print(f"one fine-tuning step, {arguments.batch} images of {arguments.size}x{arguments.size}, DnCNN 32x6")
    for count in COUNTS:
        options = ["--iterations", str(count), "--size", str(arguments.size), "--batch", str(arguments.batch)]
        command = [sys.executable, "-m", "benchmarks.memory", *options]
        steps, peak = map(
            int,
            subprocess.run(
                command, check=True, capture_output=True, text=True, env={**os.environ, **ALLOCATOR}
            ).stdout.split(),
        )
        peaks.append(peak)
        print(f"  {steps:>4} forward iterations: peak {peak / 1024:8.1f} MiB")
    print(f"  ratio {peaks[1] / peaks[0]:.3f}")


def finetuning_step(iterations: int, size: int, batch: int) -> int:
    """Forward solve of exactly `iterations` steps, then the implicit gradient; the steps taken."""
    import torch

    from elder import problems, regularizers
    from elder.fidelity import LeastSquares
    from elder.implicit import ImplicitGradient
    from elder.linear import MINRES
    from elder.objective import Objective
    from elder.solvers import ProximalGradient, solve

    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    energy = regularizers.make("least_squares", {"name": "dncnn", "width": 32, "depth": 6})
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
    main()
