"""Proximal gradient descent with a line search of its own for every image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from elder.objective import Objective
from elder.solvers.iterate import Iterate, propose, unsolved
from elder.tensors import dot


@dataclass(frozen=True)
class ProximalGradient:
    """x⁺ = prox_{τg}(x − τλ∇h(x)), with τ halved until f(x⁺) <= f(x) − (γ/τ)‖x⁺ − x‖².

    Converges to a critical point of f for h with a Lipschitz gradient (Attouch et al. 2013, Theorem 5.1; ELDER,
    Theorem 1): the energy falls at every step, and τ stops shrinking below 2(1 − γ)/(λL). One evaluation of h and ∇h
    an accepted step, one more for each rejected trial.

    decrease γ in (0, 1); shrink in (0, 1): the factor on τ after a rejection; max_trials: rejections in a row before
    the image counts as stalled.
    """

    decrease: float = 0.1
    shrink: float = 0.5
    max_trials: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.decrease < 1:
            raise ValueError(f"{type(self).__name__}(decrease=...) must be in (0, 1); got {self.decrease}")
        if not 0 < self.shrink < 1:
            raise ValueError(f"{type(self).__name__}(shrink=...) must be in (0, 1); got {self.shrink}")

    def start(self, objective: Objective, x: Tensor, step: Tensor) -> Iterate:
        """The iterate at x; step τ: scalar or (b,)."""
        energy, slope = objective.evaluate(x)
        return propose(objective, unsolved(x, slope, step, energy))

    def advance(self, objective: Objective, s: Iterate) -> Iterate:
        """One accepted step for every image, or the same place marked as stalled."""
        return self.descend(objective, s, s.proposal)

    def descend(self, objective: Objective, s: Iterate, candidate: Tensor) -> Iterate:
        """To `candidate` where it lowers the energy enough; elsewhere to the proximal step, with backtracking.

        Enough is what a proximal step must reach, f(x) − (γ/τ)‖p − x‖² with p the proposal, for an accelerated
        candidate too: so every method keeps the descent guarantee of the plain one.
        """
        settled = replace(s, stalled=torch.ones_like(s.stalled))
        pending, origin, point = torch.arange(len(s.x), device=s.x.device), s, candidate
        shrink = torch.where((candidate == s.proposal).flatten(1).all(1), self.shrink, 1.0).to(s.step)
        for _ in range(self.max_trials):
            required = self.decrease / origin.step * dot(origin.proposal - origin.x, origin.proposal - origin.x)
            # A decrease far below the rounding of the energy can't be seen, whatever the step.
            seen = required > torch.finfo(s.x.dtype).eps / 16 * _energy(origin).abs()
            if not bool(seen.all()):
                settled = settled.put(pending[~seen], replace(origin, stalled=~seen).select(~seen))
                pending, origin, point, shrink = pending[seen], origin.select(seen), point[seen], shrink[seen]
                required = required[seen]
            if not len(pending):
                break
            energy, slope = (objective if len(pending) == len(s.x) else objective.select(pending)).evaluate(point)
            origin = replace(origin, evaluations=origin.evaluations + 1)
            accepted = energy <= _energy(origin) - required
            moved = replace(origin, x=point, energy=energy, slope=slope)
            settled = settled.put(pending[accepted], moved.select(accepted))
            settled = settled.put(pending[~accepted], replace(origin, stalled=~accepted).select(~accepted))
            if bool(accepted.all()):
                break
            pending, origin, shrink = pending[~accepted], origin.select(~accepted), shrink[~accepted]
            origin = propose(objective.select(pending), replace(origin, step=origin.step * shrink))
            point, shrink = origin.proposal, torch.full_like(shrink, self.shrink)
        return propose(objective, settled)


def _energy(s: Iterate) -> Tensor:
    assert s.energy is not None
    return s.energy
