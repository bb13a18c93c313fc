"""Anderson acceleration of proximal gradient descent, safeguarded by the energy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from elder.objective import Objective
from elder.solvers import history
from elder.solvers.iterate import Iterate
from elder.solvers.proximal_gradient import ProximalGradient


@dataclass(frozen=True)
class Anderson(ProximalGradient):
    """z = Σ αᵢ pᵢ with α minimizing ‖Σ αᵢ (pᵢ − xᵢ)‖ and Σ αᵢ = 1, over the last `depth` proximal steps pᵢ of xᵢ.

    z is taken only where f(z) lies as far below f(x) as the sufficient-decrease condition asks of p; else p is,
    with backtracking. So the guarantee of `ProximalGradient` holds, which only an explicit regularizer allows.
    One evaluation an accepted z. Walker & Ni 2011 (type II); Zhang, O'Donoghue & Boyd 2020 (safeguards).

    depth: 2 to 20 steps remembered; regularization: of the normal equations, relative to their trace.
    """

    depth: int = 6
    regularization: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        history.check_depth(self)

    def start(self, objective: Objective, x: Tensor, step: Tensor) -> Iterate:
        """The first iterate, with an empty memory; see `Method`."""
        return history.begin(super().start(objective, x, step), self.depth)

    def advance(self, objective: Objective, s: Iterate) -> Iterate:
        """One step of the method; see `Method`."""
        new = self.descend(objective, s, history.extrapolate(s, self.regularization))
        # Residuals of another step length belong to another map.
        kept = s.memory.valid & (new.step == s.step).unsqueeze(1)
        return history.remember(replace(new, memory=replace(s.memory, valid=kept)))
