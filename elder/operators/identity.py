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
        return x

    def AT(self, y: Tensor) -> Tensor:
        return y

    def select(self, index: Tensor) -> Identity:
        return self

    def prox_solve(self, v: Tensor, step: Tensor, *, tol: float | None = None, max_steps: int = 1) -> Tensor:
        return v / (1 + step)

    def weighted_solve(self, v: Tensor, weights: Tensor) -> Tensor:
        return fourier_multiplier(v, 1 / (1 + weights))
