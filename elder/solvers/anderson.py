"""Anderson acceleration of proximal gradient descent, safeguarded by the energy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from elder.objective import Objective
from elder.shapes import Images, OneOrEach
from elder.solvers import history
from elder.solvers.history import History
from elder.solvers.iterate import Iterate
from elder.solvers.line_search import LineSearch


@dataclass(frozen=True)
class Anderson:
    """z = Σ αᵢ pᵢ with α minimizing ‖Σ αᵢ (pᵢ − xᵢ)‖ and Σ αᵢ = 1, over the last `depth` proximal steps pᵢ of xᵢ.

    z is accepted only if f(z) lies as far below f(x) as the sufficient-decrease condition requires of p. Otherwise p is
    accepted, with backtracking. So the guarantee of `ProximalGradient` holds, which only an energy allows. One
    evaluation for each accepted z.

    Reference: Walker & Ni, SIAM J. Numer. Anal. 49 (2011), type II. For the safeguard: Zhang, O'Donoghue & Boyd, SIAM
    J. Optim. 30 (2020).

    depth: steps remembered, at least 2; regularization: of the normal equations, relative to their trace.
    Raises `ValueError` if `depth` is less than 2.
    """

    depth: int = 6
    regularization: float = 1e-8
    line_search: LineSearch = field(default_factory=LineSearch)

    def __post_init__(self) -> None:
        history.check_depth(self)

    def start(self, objective: Objective, x: Images, step: OneOrEach) -> Iterate[History]:
        """The first iterate, with an empty memory; see `Method`."""
        return history.begin(self.line_search.start(objective, x, step), self.depth)

    def advance(self, objective: Objective, s: Iterate[History]) -> Iterate[History]:
        """One step of the method; see `Method`."""
        new = self.line_search.descend(objective, s, history.extrapolate(s, self.regularization))
        # Residuals of another step length belong to another map.
        kept = s.memory.valid & (new.step == s.step).unsqueeze(1)
        return history.remember(replace(new, memory=replace(s.memory, valid=kept)))
