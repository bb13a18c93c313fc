"""The preconditioned fixed-point iteration, as deep equilibrium models solve the equation of the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from elder.linear.base import IterativeSolver, LinearSolution, Map, solution
from elder.shapes import Images
from elder.tensors import norm, per_image


@dataclass(frozen=True)
class FixedPoint(IterativeSolver):
    """v⁺ = v + P(b − H v), P the preconditioner: the transposed step of the forward iteration (Bai et al. 2019).

    With P = (AᵀA + I/τ)⁻¹ it converges wherever x ↦ prox_{τg}(x − τλR(x)) is a contraction.
    """

    contraction: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(self, H: Map, b: Images, precondition: Map) -> LinearSolution:
        """Solve H v = b for each image; see `LinearSolver`."""
        v, products = precondition(b), 0
        while True:
            r = b - H(v)
            products += 1
            live = norm(r) > self.tol * norm(b)
            if products == self.max_steps or not bool(live.any()):
                return solution(v, norm(r), b, products, self.tol)
            v = v + per_image(live.double(), v) * precondition(r)
