"""Plain fixed-point iteration, for regularizers that have no energy to descend."""

from __future__ import annotations

from dataclasses import dataclass, replace

from elder.objective import Equilibrium
from elder.shapes import Images, OneOrEach
from elder.solvers import history
from elder.solvers.history import History
from elder.solvers.iterate import Iterate, M, propose, unsolved


@dataclass(frozen=True)
class Picard:
    """x⁺ = T(x) = prox_{τg}(x − τλR(x)) with a fixed τ. Converges where T is a contraction, which nothing here ensures.

    One network evaluation a step.
    """

    def start(self, problem: Equilibrium, x: Images, step: OneOrEach) -> Iterate[None]:
        """The iterate at x; step τ: scalar or (b,)."""
        return begin(problem, x, step)

    def advance(self, problem: Equilibrium, s: Iterate[None]) -> Iterate[None]:
        """One step for every image."""
        return move(problem, s, s.proposal)


@dataclass(frozen=True)
class AndersonMixing:
    """x⁺ = Σ αᵢ T(xᵢ) with α minimizing ‖Σ αᵢ (T(xᵢ) − xᵢ)‖ and Σ αᵢ = 1, over the last `depth` points; no safeguard.

    The forward solver of deep equilibrium models (Bai et al. 2019; Gilton et al. 2021). Without an energy there is
    nothing to check a step against: `Anderson` is the safeguarded one.

    depth: points remembered, at least 2; regularization: of the normal equations, relative to their trace.
    Raises `ValueError` if `depth` is less than 2.
    """

    depth: int = 6
    regularization: float = 1e-8

    def __post_init__(self) -> None:
        history.check_depth(self)

    def start(self, problem: Equilibrium, x: Images, step: OneOrEach) -> Iterate[History]:
        """The first iterate, with an empty memory; see `Method`."""
        return history.begin(begin(problem, x, step), self.depth)

    def advance(self, problem: Equilibrium, s: Iterate[History]) -> Iterate[History]:
        """One step of the method; see `Method`."""
        return history.remember(move(problem, s, history.extrapolate(s, self.regularization)))


def begin(problem: Equilibrium, x: Images, step: OneOrEach) -> Iterate[None]:
    """The iterate at x, (b, c, h, w), with its first proposal; step τ: scalar or (b,)."""
    return propose(problem, unsolved(x, problem.reg_grad(x), step))


def move(problem: Equilibrium, s: Iterate[M], x: Images) -> Iterate[M]:
    """The iterate at x, (b, c, h, w), with its proposal: one network evaluation."""
    return propose(problem, replace(s, x=x, reg_grad=problem.reg_grad(x), evaluations=s.evaluations + 1))
