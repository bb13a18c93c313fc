"""Proximal gradient descent with a line search of its own for every image."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from elder.objective import Objective
from elder.tensors import dot, norm, per_image


@dataclass(frozen=True, eq=False)
class Iterate:
    """Where a batch of solves stands; every field has the batch as its first axis."""

    x: Tensor  # (b, c, h, w)
    energy: Tensor  # f(x), (b,) float64
    slope: Tensor  # λ∇h(x), (b, c, h, w)
    step: Tensor  # τ, (b,) float64
    proposal: Tensor  # prox_{τg}(x − τλ∇h(x)), (b, c, h, w)
    residual: Tensor  # ‖proposal − x‖ / ‖x‖, (b,) float64; zero at a fixed point
    stalled: Tensor  # (b,) bool: no step that lowers the energy at this precision was found
    evaluations: Tensor  # energy-and-gradient evaluations so far, (b,) int
    memory: Any = None  # what an accelerated method remembers; it too selects by image

    def select(self, index: Tensor) -> Iterate:
        """The images `index` of the batch alone."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        memory = parts.pop("memory")
        return Iterate(**{name: part[index] for name, part in parts.items()}, memory=memory and memory.select(index))

    def put(self, index: Tensor, part: Iterate) -> Iterate:
        """These iterates with the images `index` taken from `part`; the memory stays."""
        if not len(index):
            return self
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "memory"}
        return replace(self, **{name: old.index_copy(0, index, getattr(part, name)) for name, old in parts.items()})


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
        batch = x.shape[0]
        energy, slope = objective.evaluate(x)
        tau = torch.as_tensor(step, dtype=torch.float64, device=x.device).expand(batch).clone()
        blank = Iterate(
            x=x,
            energy=energy,
            slope=slope,
            step=tau,
            proposal=x,
            residual=torch.full_like(tau, torch.inf),
            stalled=torch.zeros(batch, dtype=torch.bool, device=x.device),
            evaluations=torch.ones(batch, dtype=torch.long, device=x.device),
        )
        return _propose(objective, blank)

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
            seen = required > torch.finfo(s.x.dtype).eps / 16 * origin.energy.abs()
            if not bool(seen.all()):
                settled = settled.put(pending[~seen], replace(origin, stalled=~seen).select(~seen))
                pending, origin, point, shrink = pending[seen], origin.select(seen), point[seen], shrink[seen]
                required = required[seen]
            if not len(pending):
                break
            energy, slope = (objective if len(pending) == len(s.x) else objective.select(pending)).evaluate(point)
            origin = replace(origin, evaluations=origin.evaluations + 1)
            accepted = energy <= origin.energy - required
            moved = replace(origin, x=point, energy=energy, slope=slope)
            settled = settled.put(pending[accepted], moved.select(accepted))
            settled = settled.put(pending[~accepted], replace(origin, stalled=~accepted).select(~accepted))
            if bool(accepted.all()):
                break
            pending, origin, shrink = pending[~accepted], origin.select(~accepted), shrink[~accepted]
            origin = _propose(objective.select(pending), replace(origin, step=origin.step * shrink))
            point, shrink = origin.proposal, torch.full_like(shrink, self.shrink)
        return _propose(objective, settled)


def _propose(objective: Objective, s: Iterate) -> Iterate:
    """The proximal step from s.x, and its relative length."""
    p = objective.fidelity.prox(s.x - per_image(s.step, s.x) * s.slope, s.step)
    return replace(s, proposal=p, residual=norm(p - s.x) / norm(s.x).clamp(min=torch.finfo(s.x.dtype).tiny))
