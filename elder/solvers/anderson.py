"""Anderson acceleration of proximal gradient descent, safeguarded by the energy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from elder.objective import Objective
from elder.solvers.proximal_gradient import Iterate, ProximalGradient


@dataclass(frozen=True, eq=False)
class History:
    """The last proximal steps: where they led and how long they were, newest in slot `count` modulo the depth."""

    proposals: Tensor  # p_i, (b, depth, n)
    residuals: Tensor  # p_i − x_i, (b, depth, n)
    valid: Tensor  # (b, depth) bool
    count: int

    def select(self, index: Tensor) -> History:
        return History(self.proposals[index], self.residuals[index], self.valid[index], self.count)


@dataclass(frozen=True)
class Anderson(ProximalGradient):
    """z = Σ αᵢ pᵢ with α minimising ‖Σ αᵢ (pᵢ − xᵢ)‖ and Σ αᵢ = 1, over the last `depth` proximal steps pᵢ of xᵢ.

    z is taken only where f(z) lies as far below f(x) as the sufficient-decrease condition asks of p; else p is,
    with backtracking. So the guarantee of `ProximalGradient` holds, which only an explicit regulariser allows.
    One evaluation an accepted z. Walker & Ni 2011 (type II); Zhang, O'Donoghue & Boyd 2020 (safeguards).

    depth: 2 to 20 steps remembered; regularization: of the normal equations, relative to their trace.
    """

    depth: int = 6
    regularization: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 2:
            raise ValueError(f"Anderson(depth=...) must be at least 2; got {self.depth}")

    def start(self, objective: Objective, x: Tensor, step: Tensor) -> Iterate:
        s = super().start(objective, x, step)
        blank = x.new_zeros(len(x), self.depth, x[0].numel())
        valid = torch.zeros(len(x), self.depth, dtype=torch.bool, device=x.device)
        return _remember(replace(s, memory=History(blank, blank.clone(), valid, 0)))

    def advance(self, objective: Objective, s: Iterate) -> Iterate:
        new = self.descend(objective, s, self._extrapolate(s))
        # Residuals of another step length belong to another map.
        kept = s.memory.valid & (new.step == s.step).unsqueeze(1)
        return _remember(replace(new, memory=replace(s.memory, valid=kept)))

    def _extrapolate(self, s: Iterate) -> Tensor:
        memory: History = s.memory
        residual = (s.proposal - s.x).flatten(1)
        # Constrained least squares in differences to the newest step: one unknown for each older step.
        differences = (memory.residuals - residual.unsqueeze(1)) * memory.valid.unsqueeze(2)
        gram = (differences @ differences.transpose(1, 2)).double()
        target = -(differences @ residual.unsqueeze(2)).double()
        trace = gram.diagonal(dim1=1, dim2=2).sum(1).clamp(min=torch.finfo(torch.float64).tiny)
        ridge = torch.eye(self.depth, dtype=gram.dtype, device=gram.device) * self.regularization
        alpha = torch.linalg.solve(gram + ridge * trace.view(-1, 1, 1), target).to(residual.dtype)
        moves = (memory.proposals - s.proposal.flatten(1).unsqueeze(1)) * memory.valid.unsqueeze(2)
        return s.proposal + (moves * alpha).sum(1).view_as(s.proposal)


def _remember(s: Iterate) -> Iterate:
    memory: History = s.memory
    slot = torch.tensor([memory.count % memory.valid.shape[1]], device=s.x.device)
    memory = History(
        proposals=memory.proposals.index_copy(1, slot, s.proposal.flatten(1).unsqueeze(1)),
        residuals=memory.residuals.index_copy(1, slot, (s.proposal - s.x).flatten(1).unsqueeze(1)),
        valid=memory.valid.index_fill(1, slot, True),
        count=memory.count + 1,
    )
    return replace(s, memory=memory)
