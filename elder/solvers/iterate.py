"""Where a batch of solves stands, and the proximal step that every method proposes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Generic, Protocol, Self, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from elder.objective import Equilibrium
from elder.shapes import Counts, Flags, Images, Index, OneOrEach, PerImage
from elder.tensors import norm


@runtime_checkable
class Memory(Protocol):
    """What a method carries from step to step, image by image."""

    def select(self, index: Index) -> Self:
        """The memory of the images `index` of the batch."""
        ...


M = TypeVar("M", bound=Memory | None)
N = TypeVar("N", bound=Memory | None)


@dataclass(frozen=True, eq=False)
class Iterate(Generic[M]):
    """Every field has the batch as its first axis."""

    x: Images
    energy: PerImage | None  # f(x); None where the regularizer is no energy
    reg_grad: Images  # λR(x); R = ∇h for an energy
    step: PerImage  # τ
    proposal: Images  # the proximal step, prox_{τg}(x − τλR(x)) in the Euclidean metric
    residual: PerImage  # ‖proposal − x‖ / ‖x‖; zero at a fixed point
    stalled: Flags  # no step that lowers the energy at this precision was found
    evaluations: Counts  # network evaluations so far
    memory: M  # what an accelerated method remembers, or None

    def select(self, index: Index) -> Iterate[M]:
        """The images `index` of the batch alone."""
        parts = {name: None if part is None else part[index] for name, part in self._parts().items()}
        return replace(self, **parts, memory=None if self.memory is None else self.memory.select(index))

    def with_memory(self, memory: N) -> Iterate[N]:
        """These iterates with another memory."""
        return cast("Iterate[N]", replace(self, memory=memory))

    def put(self, index: Index, part: Iterate[M]) -> Iterate[M]:
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


def unsolved(x: Images, reg_grad: Images, step: OneOrEach, energy: PerImage | None = None) -> Iterate[None]:
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
        memory=None,
    )


def propose(problem: Equilibrium, s: Iterate[M]) -> Iterate[M]:
    """The proximal step from s.x, and its relative length."""
    p = problem.step(s.x, s.reg_grad, s.step)
    return replace(s, proposal=p, residual=norm(p - s.x) / norm(s.x).clamp(min=torch.finfo(s.x.dtype).tiny))
