"""The adjoint equation as a fixed point, as DEQ models solve it: plain, accelerated, truncated, or not at all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from elder.linear import Krylov, LinearSolution, Map, solution
from elder.tensors import norm, per_image


@dataclass(frozen=True)
class FixedPoint(Krylov):
    """v⁺ = v + P(b − H v), P the preconditioner: the transposed step of the forward iteration (Bai et al. 2019).

    With P = (AᵀA + I/τ)⁻¹ it converges wherever x ↦ prox_{τg}(x − τλR(x)) is a contraction.
    """

    contraction: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(self, H: Map, b: Tensor, precondition: Map) -> LinearSolution:
        v, products = precondition(b), 0
        while True:
            r = b - H(v)
            products += 1
            live = norm(r) > self.tol * norm(b)
            if products == self.max_steps or not bool(live.any()):
                return solution(v, norm(r), b, products, self.tol)
            v = v + per_image(live.double(), v) * precondition(r)


@dataclass(frozen=True)
class AndersonFixedPoint(Krylov):
    """`FixedPoint` with Anderson mixing over the last `depth` points (Gilton et al. 2021); the best point is kept."""

    contraction: ClassVar[bool] = True

    depth: int = 6

    @torch.no_grad()
    def __call__(self, H: Map, b: Tensor, precondition: Map) -> LinearSolution:
        v, products = precondition(b), 0
        best, least = v, torch.full((len(b),), torch.inf, dtype=torch.float64, device=b.device)
        points: list[Tensor] = []
        moves: list[Tensor] = []
        while products < self.max_steps:
            r = b - H(v)
            products += 1
            left = norm(r)
            best = torch.where(per_image(left < least, v) > 0, v, best)
            least = torch.minimum(left, least)
            if bool((least <= self.tol * norm(b)).all()):
                break
            points, moves = [*points, v][-self.depth :], [*moves, precondition(r)][-self.depth :]
            v = _mix(points, moves)
        return solution(best, least, b, products, self.tol)


@dataclass(frozen=True)
class Neumann:
    """v = Σ_{k <= K} (I − P H)ᵏ P b: the inverse of P H by its Neumann series, cut off after `terms` = K products.

    An approximation by intention: `converged` says only that v is finite, and `residual` how far it is off. 0 terms
    is the Jacobian-free gradient (Fung et al. 2022), which puts the preconditioner in the place of H⁻¹. One product
    more tells the residual; it is saved, and the residual is NaN, if `measured` is false.
    """

    contraction: ClassVar[bool] = True

    terms: int = 5
    measured: bool = True

    def __post_init__(self) -> None:
        if self.terms < 0:
            raise ValueError(f"Neumann(terms=...) must not be negative; got {self.terms}")

    @torch.no_grad()
    def __call__(self, H: Map, b: Tensor, precondition: Map) -> LinearSolution:
        v = precondition(b)
        for _ in range(self.terms):
            v = v + precondition(b - H(v))
        left = (
            norm(b - H(v)) if self.measured else torch.full((len(b),), torch.nan, dtype=torch.float64, device=b.device)
        )
        found = solution(v, left, b, self.terms + self.measured, 1.0)
        return replace(found, converged=norm(v).isfinite())


JACOBIAN_FREE = Neumann(0)


def _mix(points: list[Tensor], moves: list[Tensor]) -> Tensor:
    """Σ αᵢ (pᵢ + mᵢ) with α minimising ‖Σ αᵢ mᵢ‖ and Σ αᵢ = 1, image by image."""
    latest = points[-1] + moves[-1]
    if len(points) == 1:
        return latest
    newest = moves[-1].flatten(1)
    differences = torch.stack([m.flatten(1) - newest for m in moves[:-1]], 1)
    gram = (differences @ differences.transpose(1, 2)).double()
    trace = gram.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-200)
    ridge = 1e-10 * torch.eye(len(moves) - 1, dtype=gram.dtype, device=gram.device) * trace.view(-1, 1, 1)
    target = -(differences @ newest.unsqueeze(2)).double()
    alpha = torch.linalg.solve(gram + ridge, target)
    mixed = latest
    for k, (p, m) in enumerate(zip(points[:-1], moves[:-1], strict=True)):
        mixed = mixed + per_image(alpha[:, k, 0], latest) * (p + m - latest)
    return mixed
