"""The line search of the descent methods."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from elder.objective import Objective
from elder.shapes import Images, OneOrEach, PerImage
from elder.solvers.iterate import Iterate, M, propose, unsolved
from elder.tensors import dot

# A step shorter than this many rounding errors of x counts as zero.
ROUNDINGS = 10
# A decrease of less than this many rounding errors of the energy is not computed from its values.
BLURRED = 10


@dataclass(frozen=True)
class LineSearch:
    """Backtracking for each image: τ is halved until f(x⁺) <= f(x) − (γ/τ)‖p − x‖², p the proximal step.

    One evaluation of h and ∇h for each trial. If the required decrease is lost in the rounding of f, f(x⁺) − f(x) is
    taken as ½⟨∇f(x) + ∇f(x⁺), x⁺ − x⟩. This is off by the third order of the step, as in the approximate Wolfe
    conditions (Hager & Zhang 2005), and the energy is updated by it. Values of f alone would end a solve in float32 at
    residuals of 1e-4 to 1e-3.

    decrease: γ in (0, 1). shrink: the factor on τ after a rejection, in (0, 1). max_trials: rejections in a row before
    the image counts as stalled. Raises `ValueError` if `decrease` or `shrink` is not in (0, 1).
    """

    decrease: float = 0.1
    shrink: float = 0.5
    max_trials: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.decrease < 1:
            raise ValueError(f"LineSearch(decrease=...) must be in (0, 1); got {self.decrease}")
        if not 0 < self.shrink < 1:
            raise ValueError(f"LineSearch(shrink=...) must be in (0, 1); got {self.shrink}")

    def start(self, objective: Objective, x: Images, step: OneOrEach) -> Iterate[None]:
        """The iterate at x, (b, c, h, w), with its first proposal; step τ: scalar or (b,)."""
        energy, reg_grad = objective.evaluate(x)
        return propose(objective, unsolved(x, reg_grad, step, energy))

    def descend(self, objective: Objective, s: Iterate[M], candidate: Images) -> Iterate[M]:
        """To `candidate` where it lowers the energy enough; elsewhere to the proximal step, with backtracking.

        Enough is what a proximal step must reach, f(x) − (γ/τ)‖p − x‖² with p the proposal, for an accelerated
        candidate too: so every method keeps the descent guarantee of the plain one.
        """
        settled = replace(s, stalled=torch.ones_like(s.stalled))
        pending, origin, point = torch.arange(len(s.x), device=s.x.device), s, candidate
        shrink = torch.where((candidate == s.proposal).flatten(1).all(1), self.shrink, 1.0).to(s.step)
        for _ in range(self.max_trials):
            moving = ~(origin.residual <= ROUNDINGS * torch.finfo(s.x.dtype).eps)
            if not bool(moving.all()):
                pending, origin, point, shrink = pending[moving], origin.select(moving), point[moving], shrink[moving]
            if not len(pending):
                break
            part = objective if len(pending) == len(s.x) else objective.select(pending)
            energy, reg_grad = part.evaluate(point)
            settled = replace(settled, evaluations=settled.evaluations.index_add(0, pending, torch.ones_like(pending)))
            required = self.decrease / origin.step * part.square(origin.proposal - origin.x)
            change = difference(part, origin, point, energy, reg_grad, required)
            accepted = change <= -required
            moved = replace(origin, x=point, energy=_energy(origin) + change, reg_grad=reg_grad)
            moved = replace(moved, evaluations=settled.evaluations[pending])
            settled = settled.put(pending[accepted], moved.select(accepted))
            if bool(accepted.all()):
                break
            pending, origin, shrink = pending[~accepted], origin.select(~accepted), shrink[~accepted]
            origin = propose(objective.select(pending), replace(origin, step=origin.step * shrink))
            point, shrink = origin.proposal, torch.full_like(shrink, self.shrink)
        return propose(objective, settled)


def difference(
    objective: Objective, s: Iterate[M], point: Images, energy: PerImage, reg_grad: Images, required: PerImage
) -> PerImage:
    """f(point) − f(x), (b,): of the values, or where a difference of `required` is lost in them, of the gradients."""
    change = energy - _energy(s)
    blurred = required < BLURRED * torch.finfo(s.x.dtype).eps * _energy(s).abs()
    if bool(blurred.any()):
        gradients = objective.fidelity.grad(s.x) + s.reg_grad + objective.fidelity.grad(point) + reg_grad
        change = torch.where(blurred, dot(gradients, point - s.x) / 2, change)
    return change


def _energy(s: Iterate[M]) -> PerImage:
    assert s.energy is not None
    return s.energy
