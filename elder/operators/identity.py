"""The identity: denoising."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from elder.operators.base import Operator
from elder.spectral import fourier_multiplier


@dataclass(frozen=True, eq=False)
class Identity(Operator):
    """A x = x, (b, c, h, w) -> (b, c, h, w)."""

    spectral = True

    def A(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def AT(self, y: Tensor) -> Tensor:
        """y."""
        return y

    def select(self, index: Tensor) -> Identity:
        """The operator of the images `index` of the batch."""
        return self

    def prox_solve(self, v: Tensor, step: Tensor, *, tol: float | None = None, max_steps: int = 1) -> Tensor:
        """(I + τAᵀA)⁻¹ v, (b, c, h, w), in closed form; step τ: (b, 1, 1, 1)."""
        return v / (1 + step)

    def weighted_solve(self, v: Tensor, weights: Tensor) -> Tensor:
        """(AᵀA + W)⁻¹ v, (b, c, h, w), in closed form."""
        return fourier_multiplier(v, 1 / (1 + weights))
