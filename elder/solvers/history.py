"""The last proximal steps of a solve, and the extrapolation that Anderson acceleration makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from elder.shapes import Images, Index
from elder.solvers.iterate import Iterate
from elder.tensors import mixing_weights


@dataclass(frozen=True, eq=False)
class History:
    """The last proximal steps: where they led and how long they were, newest in slot `count` modulo the depth."""

    proposals: Float[Tensor, "b depth n"]  # p_i
    residuals: Float[Tensor, "b depth n"]  # p_i − x_i
    valid: Bool[Tensor, "b depth"]
    count: int

    def select(self, index: Index) -> History:
        """The memory of the images `index` of the batch."""
        return History(self.proposals[index], self.residuals[index], self.valid[index], self.count)


@runtime_checkable
class Remembering(Protocol):
    """A method that remembers its last points."""

    @property
    def depth(self) -> int:
        """How many points are remembered."""
        ...


def check_depth(method: Remembering) -> None:
    """Raise `ValueError` for a depth that remembers nothing."""
    if method.depth < 2:
        raise ValueError(f"{type(method).__name__}(depth=...) must be at least 2; got {method.depth}")


def begin(s: Iterate[None], depth: int) -> Iterate[History]:
    """The iterate with a history that holds its own step alone."""
    blank = s.x.new_zeros(len(s.x), depth, s.x[0].numel())
    valid = torch.zeros(len(s.x), depth, dtype=torch.bool, device=s.x.device)
    return remember(s.with_memory(History(blank, blank.clone(), valid, 0)))


def remember(s: Iterate[History]) -> Iterate[History]:
    """The iterate with its step added to the history, in place of the oldest."""
    memory = s.memory
    slot = torch.tensor([memory.count % memory.valid.shape[1]], device=s.x.device)
    memory = History(
        proposals=memory.proposals.index_copy(1, slot, s.proposal.flatten(1).unsqueeze(1)),
        residuals=memory.residuals.index_copy(1, slot, (s.proposal - s.x).flatten(1).unsqueeze(1)),
        valid=memory.valid.index_fill(1, slot, True),
        count=memory.count + 1,
    )
    return replace(s, memory=memory)


def extrapolate(s: Iterate[History], regularization: float) -> Images:
    """Σ αᵢ pᵢ with α minimizing ‖Σ αᵢ (pᵢ − xᵢ)‖ and Σ αᵢ = 1, (b, c, h, w)."""
    memory = s.memory
    residual = (s.proposal - s.x).flatten(1)
    differences = (memory.residuals - residual.unsqueeze(1)) * memory.valid.unsqueeze(2)
    alpha = mixing_weights(differences, residual, regularization).to(residual.dtype)
    moves = (memory.proposals - s.proposal.flatten(1).unsqueeze(1)) * memory.valid.unsqueeze(2)
    return s.proposal + (moves * alpha).sum(1).view_as(s.proposal)
