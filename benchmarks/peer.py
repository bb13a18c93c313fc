"""Side by side with deepinv 0.5: `python -m benchmarks.peer`, after `pip install -e '.[bench]'`.

The same energy, weights, operator, start and step; CS-MRI at 20 %, deblurring and super-resolution by 3. Each library
solves by its own means: deepinv by proximal gradient descent (PGD), as it is and with its Anderson acceleration, the
prior's gradient by automatic differentiation of its value. Time to the same energy; and a training step of a deep
equilibrium model, to the same residual forward and at most the same error of the gradient backward. deepinv's prior
comes without a cost function, which would take another network evaluation a step. Its networks lie in PyTorch's
default memory layout; as a user of it would have it, and handed ours, channels last, too.
"""

from __future__ import annotations

import copy
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, takewhile
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.common import (
    NETWORKS,
    TOLERANCES,
    Row,
    counted,
    measured,
    model,
    paired,
    parser,
    record,
    shown,
    summarized,
)
from elder.fidelity import LeastSquares
from elder.implicit import ImplicitGradient
from elder.linear import MINRES
from elder.model.model import Model
from elder.objective import Objective
from elder.problems.samples import Sample
from elder.solvers import fixed_point, path
from elder.tensors import norm, per_image

T = TypeVar("T")

PROBLEMS = {
    "csmri 20 %": ("csmri", {"ratio": 0.2}),
    "deblur": ("deblur", {"kernel": "gaussian", "noise": 0.01}),
    "superres x3": ("superres", {"scale": 3}),
}
GAP, MOST = 1e-4, 100
# A deep equilibrium step: residual of the forward solve, side of the pictures, and of how many.
RESIDUAL, SIDE, BATCH = 1e-3, 66, 2
# Where memory is compared, the side that makes it show.
LARGE = 240
MEMORY = "peak memory of a DEQ step, DRUNet, deblur"


def run(runs: int, only: str = "") -> Iterator[Row]:
    """Memory, then both comparisons for every problem and network whose case holds `only`."""
    # First: a process inherits the peak of the one that starts it, which is still small here.
    if only in MEMORY:
        yield memory()
    for label, (problem, settings) in PROBLEMS.items():
        for title in [title for title in NETWORKS if only in f"{label}, {title}"]:
            chosen = model(title, problem, **settings)
            yield from reconstruction(f"{label}, {title}", chosen, runs)
            yield from training(f"{label}, {title}", chosen, runs)


def reconstruction(case: str, chosen: Model, runs: int) -> list[Row]:
    """Seconds to close all but GAP of the way to the least energy that we find, ours over each variant of deepinv."""
    size = (255, 255) if chosen.problem.name == "superres" else (256, 256)
    m = measured(chosen, size)[0]
    objective = chosen.objective(m.operator, m.y)
    assert isinstance(objective, Objective)
    x0, step, physics = (
        chosen.problem.initial(m.operator, m.y),
        torch.tensor(chosen.hyperparameters.step),
        physics_of(chosen, m),
    )
    with torch.no_grad():
        states = takewhile(lambda s: not bool(s.stalled), islice(path(objective, x0, step), 50))
        ours = [float(s.energy) for s in states if s.energy is not None]
        goal = min(ours) + GAP * (ours[0] - min(ours))
        found = {name: steps_to(goal, chosen, m, x0, objective, anderson) for name, anderson in VARIANTS.items()}
    own = next(k for k, energy in enumerate(ours) if energy <= goal)

    @torch.no_grad()
    def solve() -> None:
        for _ in islice(path(objective, x0, step), own + 1):
            pass

    rows = []
    for name, count in found.items():
        if count is None:
            rows.append(counted("peer", f"{case}: our steps; {name} did not come there in {MOST}", own, "steps"))
            continue
        text = f"{case}: our {own} steps over {count} of {name}"
        for layout, (place, target) in LAYOUTS.items():
            peer = Peer(laid_out(chosen, place), m, count, VARIANTS[name])
            (ratios,) = paired(lambda peer=peer: peer(m.y, physics, init=x0), solve, runs=runs)
            rows.append(summarized("peer", f"{text}, {layout}", ratios, "of its time", target))
    return rows


def training(case: str, chosen: Model, runs: int, side: int = SIDE) -> list[Row]:
    """Seconds of a deep equilibrium step, ours over that of deepinv's more exact variant, at most its error."""
    setup = Training(chosen, side)
    errors = {}
    for name, anderson in BACKWARD.items():
        x, gradient = setup.theirs(anderson)
        errors[name] = away(gradient, setup.exact(x))
    name, goal = min(errors.items(), key=lambda pair: pair[1])
    exact = setup.exact(setup.ours(TOLERANCES[0])[0])
    tol, error = TOLERANCES[0], float("inf")
    for tol in TOLERANCES:
        error = away(setup.ours(tol)[1], exact)
        if error <= goal:
            break
    rows = []
    for layout, (place, target) in LAYOUTS.items():
        other = Training(laid_out(chosen, place), side)
        (ratios,) = paired(lambda other=other: other.theirs(BACKWARD[name]), lambda: setup.ours(tol), runs=runs)
        text = f"{case}: DEQ step, gradient error {error:.1e}; {name} {goal:.1e}, {layout}"
        rows.append(summarized("peer", text, ratios, "of its time", target))
    return rows


class Training:
    """One training step on the same measurements by either library: fixed points, and the gradient in the weights."""

    def __init__(self, chosen: Model, side: int = SIDE) -> None:
        self.model = chosen
        self.weights = list(chosen.regularizer.requires_grad_().parameters())
        truth = torch.cat([m.truth for m in measured(chosen, (side, side))[:BATCH]])
        operator, y = chosen.problem.simulate(truth, torch.Generator().manual_seed(0))
        self.truth, operator, y = truth.to(chosen.device), operator.to(chosen.device), y.to(chosen.device)
        self.m = Sample("batch", self.truth, operator, y)
        self.start = chosen.problem.initial(operator, y)
        self.physics = physics_of(chosen, self.m)
        self.problem = chosen.objective(operator, y)

    def ours(self, tol: float) -> tuple[Tensor, Tensor]:
        """Our fixed point, and the gradient there with the adjoint equation solved to `tol`."""
        step = torch.tensor(self.model.hyperparameters.step)
        solution = fixed_point(self.problem, self.start, step, tol=RESIDUAL, max_steps=MOST)
        x, _ = ImplicitGradient(MINRES(tol, 200)).attach(self.problem, solution.x, solution.step)
        return x.detach(), self.gradient(x)

    def theirs(self, anderson: bool) -> tuple[Tensor, Tensor]:
        """deepinv's fixed point and gradient; `anderson`: backward, too."""
        peer = Peer(self.model, self.m, MOST, False, residual=RESIDUAL, backward=anderson)
        x = peer(self.m.y, self.physics, init=self.start)
        return x.detach(), self.gradient(x)

    def exact(self, x: Tensor) -> Tensor:
        """The gradient at x, in float64: a float32 solve of CS-MRI's adjoint equation is no reference."""
        objective = self.problem
        assert isinstance(objective.fidelity, LeastSquares)
        data = doubled(replace(objective.fidelity, operator=doubled(objective.fidelity.operator)))
        energy = copy.deepcopy(objective.regularizer).double()
        problem = replace(objective, fidelity=data, regularizer=energy)
        attached, backward = ImplicitGradient(MINRES(1e-7, 2000)).attach(
            problem, x.double(), torch.tensor(self.model.hyperparameters.step, dtype=torch.float64)
        )
        gradient = self.gradient(attached, list(energy.parameters()))
        assert not backward.skipped, "the reference solve did not converge: there is nothing to compare with"
        return gradient

    def gradient(self, x: Tensor, weights: list[nn.Parameter] | None = None) -> Tensor:
        """The gradient of the mean squared error of x in the weights, as one vector."""
        loss = (x - self.truth.to(x.dtype)).square().mean()
        parts = torch.autograd.grad(loss, weights or self.weights)
        return torch.cat([part.flatten() for part in parts])


def away(gradient: Tensor, exact: Tensor) -> float:
    """‖gradient − exact‖ / ‖exact‖."""
    return float((gradient.double() - exact).norm() / exact.norm())


def doubled(record: T) -> T:
    """A record with its tensors in double precision."""
    precise = {torch.float32: torch.float64, torch.complex64: torch.complex128}
    copied = copy.copy(record)
    for name, value in vars(record).items():
        if isinstance(value, Tensor):
            object.__setattr__(copied, name, value.to(precise.get(value.dtype, value.dtype)))
    return copied


LAYOUTS = {
    "its layout": (torch.contiguous_format, 1 / 3),
    "our layout": (torch.channels_last, None),
}


def laid_out(chosen: Model, layout: torch.memory_format) -> Model:
    """The same weights in another memory layout."""
    return replace(chosen, regularizer=copy.deepcopy(chosen.regularizer).to(memory_format=layout))  # type: ignore[call-overload]


VARIANTS = {"PGD": False, "PGD with Anderson": True}
BACKWARD = {"its default": False, "its Anderson": True}


def deepinv():
    """The module; without torchvision's compiled operators, whose schemas its import asks for."""
    if not hasattr(torch.ops.torchvision, "nms"):
        schemas = torch.library.Library("torchvision", "DEF")
        schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        deepinv.schemas = schemas  # type: ignore[attr-defined]
    import deepinv as module

    return module


def physics_of(chosen: Model, m: Sample):
    """deepinv's operator; checked to be ours. Its CS-MRI takes complex pictures only: there it is handed ours."""
    dinv = deepinv()
    if chosen.problem.name == "csmri":
        return ours_as_physics(m)
    size, kernel = tuple(m.truth.shape[1:]), m.operator.kernel[None, None]  # type: ignore[attr-defined]
    if chosen.problem.name == "superres":
        physics = dinv.physics.Downsampling(img_size=size, filter=kernel, factor=3, padding="circular")
    else:
        physics = dinv.physics.BlurFFT(img_size=size, filter=kernel)
    gap = norm(physics.A(m.truth) - m.operator.A(m.truth)).max()
    assert float(gap) < 1e-3, f"deepinv's operator differs by {float(gap):.1e}"
    return physics


def ours_as_physics(m: Sample):
    """Our operator with its closed-form prox as an operator of deepinv."""
    dinv, operator = deepinv(), m.operator

    class Physics(dinv.physics.LinearPhysics):
        def A(self, x: Tensor, **options: object) -> Tensor:
            return operator.A(x)

        def A_adjoint(self, y: Tensor, **options: object) -> Tensor:
            return operator.AT(y)

        def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor, **options: object) -> Tensor:
            tau = per_image(torch.as_tensor(gamma), z)
            return operator.prox_solve(z + tau * operator.AT(y), tau)

    return Physics()


def Peer(chosen: Model, m: Sample, most: int, anderson: bool, residual: float = 0.0, backward: bool | None = None):
    """deepinv's proximal gradient descent on the same energy: gradient step on the prior, then prox of the data."""
    dinv, network = deepinv(), chosen.regularizer.get_submodule("network")

    class Residual(dinv.optim.Prior):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def fn(self, x: Tensor, sigma: Tensor, *args: object, **kwargs: object) -> Tensor:
            r = x - self.network(x, torch.as_tensor(chosen.hyperparameters.sigma))
            return r.square().flatten(1).sum(1) / 2

    deq = {}
    if backward is not None:
        config = dinv.optim.DEQConfig(anderson_acceleration_backward=backward)
        deq = {"unfold": True, "DEQ": config, "trainable_params": []}
    return dinv.optim.PGD(
        data_fidelity=dinv.optim.L2(),
        prior=Residual(),
        lambda_reg=chosen.hyperparameters.lambda_reg,
        stepsize=chosen.hyperparameters.step,
        g_param=chosen.hyperparameters.sigma,
        max_iter=most,
        g_first=True,
        early_stop=residual > 0,
        thres_conv=residual,
        anderson_acceleration=anderson,
        **deq,
    )


def steps_to(goal: float, chosen: Model, m: Sample, x0: Tensor, objective: Objective, anderson: bool) -> int | None:
    """How many steps deepinv takes to the energy `goal`, or None where MOST are not enough."""
    peer = Peer(chosen, m, MOST, anderson)
    reached: list[int] = []

    def check(it: int, X_prev: dict[str, Any], X: dict[str, Any]) -> bool:
        if float(objective.value(X["est"][0])) <= goal:
            reached.append(it + 1)
        return bool(reached)

    peer.fixed_point.check_conv_fn = check
    peer.fixed_point.early_stop = True
    peer(m.y, physics_of(chosen, m), init=x0)
    return reached[0] if reached else None


def memory() -> Row:
    """Peak of a process that takes one training step, ours over deepinv's."""
    peaks = {}
    for library in ("deepinv", "elder"):
        command = [sys.executable, "-m", "benchmarks.peer", "--peak", library]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
        )
        peaks[library] = int(done.stdout.split()[-1])
    return counted("peer", MEMORY, peaks["elder"] / peaks["deepinv"], "of its", 1.0)


def main() -> None:
    """The command: all cases, or those that are asked for."""
    chosen = parser(__doc__, runs=3)
    chosen.add_argument(
        "--only", default="", metavar="TEXT", help="only cases whose name holds this: 'superres', 'DRUNet'"
    )
    arguments = chosen.parse_args()
    rows = shown(run(arguments.runs, arguments.only))
    if not rows:
        chosen.error(
            f"no case holds {arguments.only!r}; there are {', '.join(PROBLEMS)}, each with {' and '.join(NETWORKS)}"
        )
    record(rows, whole=not arguments.only)


def peak(library: str) -> None:
    """Print the growth of this process's peak over one training step, in KiB."""
    chosen = model("DRUNet 32-64-128-256", "deblur", **PROBLEMS["deblur"][1])
    setup = Training(laid_out(chosen, LAYOUTS["its layout"][0]) if library == "deepinv" else chosen, LARGE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    setup.theirs(False) if library == "deepinv" else setup.ours(1e-2)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


if __name__ == "__main__":
    if "--peak" in sys.argv:
        peak(sys.argv[-1])
    else:
        main()
