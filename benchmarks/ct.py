"""Computed tomography, its time and memory: `python -m benchmarks.ct`.

Square pictures of 256 pixels with 60 angles, and of 512 with 180. Projection and filtered back-projection take turns
with `radon` and `iradon` of scikit-image. Each size is measured in a process of its own, since a process's peak of
memory never falls. It builds the operator, and reconstructs the Shepp-Logan phantom with noise 0.002: by total
variation with the primal-dual method, and by smoothed total variation with the default solver. Seconds are of processor
time, summed over threads.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from skimage.data import shepp_logan_phantom
from skimage.transform import iradon, radon, resize

from benchmarks.common import Row, counted, main, paired, summarized
from elder import problems
from elder.objective import Objective
from elder.operators import Radon
from elder.regularizers.total_variation import SmoothedTotalVariation
from elder.solvers import fixed_point
from elder.solvers.primal_dual import reconstruct_tv

CASES = {"256x256, 60 angles": (256, 60), "512x512, 180 angles": (512, 180)}
LAMBDA, STEP = 1e-3, 20.0
BUDGET = 1536  # MiB


def run(runs: int) -> list[Row]:
    """Every figure of both sizes."""
    rows = []
    for case, (size, angles) in CASES.items():
        command = [sys.executable, "-m", "benchmarks.ct", "--measure", str(size), str(angles), str(runs)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows += [summarized("ct", f"{case}, {name}", ratios, "") for name, ratios in found["ratios"].items()]
        rows += [counted("ct", f"{case}, {name}", *figure) for name, figure in found["figures"].items()]
    return rows


def measure(size: int, angles: int, runs: int) -> dict[str, dict[str, Any]]:
    """Ratios to scikit-image, and figures with their units, at one size."""
    picture = resize(shepp_logan_phantom(), (size, size))
    x, theta = torch.from_numpy(picture).float()[None, None], np.arange(angles) * 180 / angles
    problem, figures = problems.make("ct", {"angles": angles, "noise": 0.002}), {}
    figures["memory of the libraries"] = (peak(), "MiB")
    start = time.process_time()
    operator, y = problem.simulate(x, torch.Generator().manual_seed(0))
    assert isinstance(operator, Radon)
    figures["building and first projection"] = (time.process_time() - start, "s")
    figures["memory of A and its adjoint"] = (16 * operator.matrix.values().numel() / 2**20, "MiB")
    figures |= solves(problem, operator, y)
    figures["peak memory"] = (peak(), "MiB", BUDGET)
    sinogram = radon(picture, theta, circle=False)
    turns = {
        "projection over radon": (lambda: radon(picture, theta, circle=False), lambda: operator.A(x)),
        "filtered back-projection over iradon": (
            lambda: iradon(sinogram, theta, circle=False),
            lambda: problem.initial(operator, y),
        ),
    }
    return {"ratios": {name: paired(*turn, runs=runs)[0] for name, turn in turns.items()}, "figures": figures}


def solves(problem: problems.Problem, operator: Radon, y: torch.Tensor) -> dict[str, tuple[float, str]]:
    """Time, steps and projections of each solve."""
    initial, fidelity = problem.initial(operator, y), problem.fidelity(operator, y)
    objective = Objective(fidelity, SmoothedTotalVariation(epsilon=0.02), torch.tensor(LAMBDA), torch.tensor(0.0))
    methods: dict[str, Callable[[], torch.Tensor]] = {
        "total variation": lambda: reconstruct_tv(fidelity, initial, LAMBDA).steps,
        "smoothed total variation": lambda: fixed_point(objective, initial, torch.tensor(STEP)).steps,
    }
    figures = {}
    projections: list[int] = []
    project = Radon.A
    Radon.A = lambda self, x: projections.append(1) or project(self, x)
    for name, solve in methods.items():
        projections.clear()
        start = time.process_time()
        steps = int(solve())
        figures[name] = (time.process_time() - start, "s")
        figures[f"{name}, steps"] = (steps, "")
        figures[f"{name}, projections"] = (len(projections), "")
    Radon.A = project
    return figures


def peak() -> float:
    """The most memory that this process held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if "--measure" in sys.argv:
        print(json.dumps(measure(*map(int, sys.argv[-3:]))))
    else:
        main(run, __doc__, runs=3)
