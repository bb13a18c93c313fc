"""Where a batch of solves stands, and the proximal step that every method proposes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from elder.objective import Equilibrium
from elder.tensors import norm


@dataclass(frozen=True, eq=False)
class Iterate:
    """Every field has the batch as its first axis."""

    x: Tensor  # (b, c, h, w)
    energy: Tensor | None  # f(x), (b,) float64; None where the regularizer is no energy
    reg_grad: Tensor  # λR(x), (b, c, h, w); R = ∇h for an energy
    step: Tensor  # τ, (b,) float64
    proposal: Tensor  # the proximal step, prox_{τg}(x − τλR(x)) in the Euclidean metric, (b, c, h, w)
    residual: Tensor  # ‖proposal − x‖ / ‖x‖, (b,) float64; zero at a fixed point
    stalled: Tensor  # (b,) bool: no step that lowers the energy at this precision was found
    evaluations: Tensor  # network evaluations so far, (b,) int
    memory: Any = None  # what an accelerated method remembers; it too selects by image

    def select(self, index: Tensor) -> Iterate:
        """The images `index` of the batch alone."""
        parts = {name: None if part is None else part[index] for name, part in self._parts().items()}
        return Iterate(**parts, memory=self.memory and self.memory.select(index))  # pyright: ignore[reportArgumentType]

    def put(self, index: Tensor, part: Iterate) -> Iterate:
        """These iterates with the images `index` taken from `part`; the memory stays."""
        if not len(index):
            return self
        parts = {
            name: None if old is None else old.index_copy(0, index, getattr(part, name))
            for name, old in self._parts().items()
        }
        return replace(self, **parts)

    def _parts(self) -> dict[str, Tensor | None]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "memory"}


def unsolved(x: Tensor, reg_grad: Tensor, step: Tensor, energy: Tensor | None = None) -> Iterate:
    """The first iterate, before its proposal; step τ: scalar or (b,)."""
    tau = torch.as_tensor(step, dtype=torch.float64, device=x.device).expand(len(x)).clone()
    return Iterate(
        x=x,
        energy=energy,
        reg_grad=reg_grad,
        step=tau,
        proposal=x,
        residual=torch.full_like(tau, torch.inf),
        stalled=torch.zeros(len(x), dtype=torch.bool, device=x.device),
        evaluations=torch.ones(len(x), dtype=torch.long, device=x.device),
    )


def propose(problem: Equilibrium, s: Iterate) -> Iterate:
    """The proximal step from s.x, and its relative length."""
    p = problem.step(s.x, s.reg_grad, s.step)
    return replace(s, proposal=p, residual=norm(p - s.x) / norm(s.x).clamp(min=torch.finfo(s.x.dtype).tiny))
