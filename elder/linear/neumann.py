"""The truncated Neumann series, and the Jacobian-free approximation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from elder.linear.base import LinearSolution, Map, solution
from elder.shapes import Images
from elder.tensors import norm


@dataclass(frozen=True)
class Neumann:
    """v = Σ_{k <= K} (I − P H)ᵏ P b: the inverse of P H by its Neumann series, cut off after `terms` = K products.

    An approximation by intention: nothing has `converged`, what is finite is `usable`, and `residual` says how far it
    is off. 0 terms is the Jacobian-free gradient (Fung et al. 2022), which puts the preconditioner in the place of
    H⁻¹. One product more tells the residual; it is saved, and the residual is NaN, if `measured` is false.
    Raises `ValueError` for a negative number of terms.
    """

    contraction: ClassVar[bool] = True

    terms: int = 5
    measured: bool = True

    def __post_init__(self) -> None:
        if self.terms < 0:
            raise ValueError(f"Neumann(terms=...) must not be negative; got {self.terms}")

    @torch.no_grad()
    def __call__(self, H: Map, b: Images, precondition: Map) -> LinearSolution:
        """Solve H v = b for each image; see `LinearSolver`."""
        v = precondition(b)
        for _ in range(self.terms):
            v = v + precondition(b - H(v))
        left = (
            norm(b - H(v)) if self.measured else torch.full((len(b),), torch.nan, dtype=torch.float64, device=b.device)
        )
        found = solution(v, left, b, self.terms + self.measured, 1.0)
        usable = norm(v).isfinite()
        return replace(found, converged=torch.zeros_like(usable), usable=usable)


JACOBIAN_FREE = Neumann(0)
