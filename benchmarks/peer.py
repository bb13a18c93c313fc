"""Side by side with deepinv 0.5: `python -m benchmarks.peer`, after `pip install -e '.[bench]'`.

The same energy, weights, operator, start and step; deblurring and super-resolution by 3. Each library solves by its
own means: deepinv by proximal gradient descent (PGD), as it is and with its Anderson acceleration, the prior's gradient
by automatic differentiation of its value. Time to the same energy; and a training step of a deep equilibrium model, to
the same residual forward and at most the same error of the gradient backward. deepinv's prior comes without a cost
function, which would take another network evaluation a step.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.common import NETWORKS, SIGMA, WEIGHT, Row, counted, main, measured, model, paired, summarised
from elder.implicit import ImplicitGradient
from elder.linear import MINRES
from elder.measurements import Measured
from elder.model import Model
from elder.objective import Objective
from elder.solvers import fixed_point, path
from elder.tensors import norm

PROBLEMS = {
    "deblur": ("deblur", {"kernel": "gaussian", "noise": 0.01}),
    "superres x3": ("superres", {"scale": 3}),
}
GAP, MOST = 1e-4, 400
# A deep equilibrium step: residual of the forward solve, side of the pictures, and of how many.
RESIDUAL, SIDE, BATCH = 1e-3, 96, 4
STEP = 1 / WEIGHT


def run(runs: int) -> list[Row]:
    """Both comparisons for every problem and network, then memory."""
    rows = []
    for label, (problem, settings) in PROBLEMS.items():
        for title in NETWORKS:
            chosen = model(title, problem, **settings)
            rows += reconstruction(f"{label}, {title}", chosen, runs)
            rows += training(f"{label}, {title}", chosen, runs)
    rows.append(memory())
    return rows


def reconstruction(case: str, chosen: Model, runs: int) -> list[Row]:
    """Seconds to an energy within GAP of the least, deepinv's over ours."""
    size = (255, 255) if chosen.problem.name == "superres" else (256, 256)
    m = measured(chosen, size)[0]
    objective = chosen.objective(m.operator, m.y)
    assert isinstance(objective, Objective)
    x0, step = chosen.problem.initial(m.operator, m.y), torch.tensor(STEP)
    with torch.no_grad():
        ours = [float(s.energy) for s, _ in zip(path(objective, x0, step), range(60), strict=False)]  # type: ignore[arg-type]
        theirs = {name: energies(chosen, m, x0, objective, anderson) for name, anderson in VARIANTS.items()}
    goal = (1 + GAP) * min([*ours, *(e for found in theirs.values() for e in found)])
    own = next(k for k, e in enumerate(ours) if e <= goal)

    @torch.no_grad()
    def solve() -> None:
        for s, _ in zip(path(objective, x0, step), range(own + 1), strict=False):
            del s

    rows = []
    for name, found in theirs.items():
        count = next((k for k, e in enumerate(found) if e <= goal), None)
        if count is None:
            rows.append(counted("peer", f"{case}, {name} in {len(found)} steps: gap", min(found) / min(ours) - 1, ""))
            continue
        peer, physics = Peer(chosen, m, count, VARIANTS[name]), physics_of(chosen, m)
        (ratios,) = paired(peer_free(peer, m, physics, x0), solve, runs=runs)
        rows.append(summarised("peer", f"{case}: our {own} steps over {name}'s {count}", ratios, "of its time", 1 / 3))
    return rows


def peer_free(peer: torch.nn.Module, m: Measured, physics: object, x0: Tensor) -> Callable[[], None]:
    """One reconstruction by deepinv."""

    def solve() -> None:
        peer(m.y, physics, init=x0)

    return solve


def training(case: str, chosen: Model, runs: int) -> list[Row]:
    """Seconds of a deep equilibrium step, ours over deepinv's, at most its error of the gradient."""
    setup = Training(chosen)
    exact = setup.ours(1e-5, 1e-7)
    best: tuple[str, bool, float] | None = None
    for anderson in (False, True):
        for most in (12, 25, 50, 100):
            error = relative(setup.theirs(anderson, most), exact)
            if best is None or error < 0.7 * best[2]:
                best = (f"{'Anderson' if anderson else 'plain'} backward, {most} steps", anderson, error)
                chosen_most = most
    assert best is not None
    name, anderson, goal = best
    tol = next(
        t
        for t in (0.3, 0.1, 0.05, 0.02, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)
        if relative(setup.ours(RESIDUAL, t), exact) <= goal
    )
    (ratios,) = paired(
        lambda: setup.theirs(anderson, chosen_most), lambda: setup.ours(RESIDUAL, tol), runs=max(2, runs // 2)
    )
    error = relative(setup.ours(RESIDUAL, tol), exact)
    text = f"{case}: DEQ step, gradient error {error:.1e}, {name} {goal:.1e}"
    return [summarised("peer", text, ratios, "of its time", 1 / 3)]


class Training:
    """One training step on the same measurements by either library: the gradient in the weights."""

    def __init__(self, chosen: Model) -> None:
        self.model = chosen
        self.weights = list(chosen.regularizer.requires_grad_().parameters())
        parts = measured(chosen, (SIDE, SIDE))[:BATCH]
        self.truth = torch.cat([m.truth for m in parts])
        operator, y = chosen.problem.simulate(self.truth, torch.Generator().manual_seed(0))
        self.m = Measured("batch", self.truth, operator, y)
        self.start = chosen.problem.initial(operator, y)
        self.physics = physics_of(chosen, self.m)

    def ours(self, residual: float, adjoint: float) -> Tensor:
        problem = self.model.objective(self.m.operator, self.m.y)
        solution = fixed_point(problem, self.start, torch.tensor(STEP), tol=residual, max_steps=MOST)
        x, _ = ImplicitGradient(MINRES(adjoint, MOST)).attach(problem, solution.x, solution.step)
        return self.gradient(x)

    def theirs(self, anderson: bool, most: int) -> Tensor:
        peer = Peer(self.model, self.m, MOST, False, residual=RESIDUAL, backward=(anderson, most))
        return self.gradient(peer(self.m.y, self.physics, init=self.start))

    def gradient(self, x: Tensor) -> Tensor:
        parts = torch.autograd.grad((x - self.truth).square().mean(), self.weights)
        return torch.cat([part.flatten() for part in parts])


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


VARIANTS = {"PGD": False, "PGD with Anderson": True}


def deepinv():
    """The module; without torchvision's compiled operators, whose schemas its import asks for."""
    if not hasattr(torch.ops.torchvision, "nms"):
        schemas = torch.library.Library("torchvision", "DEF")
        schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        deepinv.schemas = schemas  # type: ignore[attr-defined]
    import deepinv as module

    return module


def physics_of(chosen: Model, m: Measured):
    """deepinv's operator; checked to be ours."""
    dinv = deepinv()
    size, kernel = tuple(m.truth.shape[1:]), m.operator.kernel[None, None]  # type: ignore[attr-defined]
    if chosen.problem.name == "superres":
        physics = dinv.physics.Downsampling(img_size=size, filter=kernel, factor=3, padding="circular")
    else:
        physics = dinv.physics.BlurFFT(img_size=size, filter=kernel)
    gap = norm(physics.A(m.truth) - m.operator.A(m.truth)).max()
    assert float(gap) < 1e-3, f"deepinv's operator differs by {float(gap):.1e}"
    return physics


def Peer(chosen: Model, m: Measured, most: int, anderson: bool, residual: float = 0.0, backward=None):
    """deepinv's proximal gradient descent on the same energy: gradient step on the prior, then prox of the data."""
    dinv = deepinv()
    energy = chosen.regularizer

    class Residual(dinv.optim.Prior):
        def __init__(self) -> None:
            super().__init__()
            self.network = energy.network  # type: ignore[attr-defined]

        def fn(self, x: Tensor, sigma: Tensor, *args: object, **kwargs: object) -> Tensor:
            r = x - self.network(x, torch.as_tensor(SIGMA))
            return r.square().flatten(1).sum(1) / 2

    deq = {}
    if backward is not None:
        config = dinv.optim.DEQConfig(anderson_acceleration_backward=backward[0], max_iter_backward=backward[1])
        deq = {"unfold": True, "DEQ": config, "trainable_params": []}
    return dinv.optim.PGD(
        data_fidelity=dinv.optim.L2(),
        prior=Residual(),
        lambda_reg=WEIGHT,
        stepsize=STEP,
        g_param=SIGMA,
        max_iter=most,
        g_first=True,
        early_stop=residual > 0,
        thres_conv=residual,
        anderson_acceleration=anderson,
        **deq,
    )


def energies(chosen: Model, m: Measured, x0: Tensor, objective: Objective, anderson: bool) -> list[float]:
    """The energy after each of deepinv's steps."""
    found: list[float] = [float(objective.value(x0))]
    peer = Peer(chosen, m, MOST, anderson)
    check = peer.fixed_point.check_conv_fn

    def spy(it: int, X_prev: dict, X: dict) -> bool:
        found.append(float(objective.value(X["est"][0])))
        return check(it, X_prev, X)

    peer.fixed_point.check_conv_fn = spy
    peer.fixed_point.early_stop = True
    peer(m.y, physics_of(chosen, m), init=x0)
    return found


def memory() -> Row:
    """Peak of a process that takes one training step, ours over deepinv's."""
    peaks = {}
    for library in ("deepinv", "elder"):
        command = [sys.executable, "-m", "benchmarks.peer", "--peak", library]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
        )
        peaks[library] = int(done.stdout.split()[-1])
    return counted(
        "peer", "peak memory of a DEQ step, DRUNet, deblur", peaks["elder"] / peaks["deepinv"], "of its", 1.0
    )


def peak(library: str) -> None:
    """Print the growth of this process's peak over one training step, in KiB."""
    setup = Training(model("DRUNet 32-64-128-256", "deblur", **PROBLEMS["deblur"][1]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    setup.theirs(False, 25) if library == "deepinv" else setup.ours(RESIDUAL, 1e-2)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


if __name__ == "__main__":
    if "--peak" in sys.argv:
        peak(sys.argv[-1])
    else:
        main(run, __doc__, runs=3)
