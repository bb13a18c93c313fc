"""Proximal gradient descent with a line search for each image."""

from __future__ import annotations

from dataclasses import dataclass, field

from elder.objective import Objective
from elder.shapes import Images, OneOrEach
from elder.solvers.iterate import Iterate
from elder.solvers.line_search import LineSearch


@dataclass(frozen=True)
class ProximalGradient:
    """x⁺ = prox_{τg}(x − τλ∇h(x)), with τ from the line search; both in the metric of the problem.

    Converges to a critical point of f if ∇h is Lipschitz continuous: the energy falls at every step, and τ stops
    shrinking below 2(1 − γ)/(λL). One evaluation of h and ∇h for each accepted step, one more for each rejected trial.

    Reference: Attouch, Bolte & Svaiter, Math. Program. 137 (2013), Theorem 5.1; ELDER, Theorem 1. In another metric
    than the Euclidean one: Chouzenoux, Pesquet & Repetti, J. Optim. Theory Appl. 162 (2014).
    """

    line_search: LineSearch = field(default_factory=LineSearch)

    def start(self, objective: Objective, x: Images, step: OneOrEach) -> Iterate[None]:
        """The iterate at x, (b, c, h, w); step τ: scalar or (b,)."""
        return self.line_search.start(objective, x, step)

    def advance(self, objective: Objective, s: Iterate[None]) -> Iterate[None]:
        """One accepted step for every image, or the same place marked as stalled."""
        return self.line_search.descend(objective, s, s.proposal)
