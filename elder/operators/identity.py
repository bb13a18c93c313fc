"""The identity: denoising."""

from __future__ import annotations

from dataclasses import dataclass

from elder.operators.base import Operator
from elder.shapes import Anything, Factor, Images, Index, Multiplier
from elder.spectral import fourier_multiplier


@dataclass(frozen=True, eq=False)
class Identity(Operator):
    """A x = x, (b, c, h, w) -> (b, c, h, w)."""

    spectral = True

    def check(self, y: Anything) -> None:
        """Raise `ValueError` if y does not have the shape and type of a measurement."""
        if y.ndim != 4 or y.is_complex():
            raise ValueError(f"the measurement must be real (b, c, h, w); got {y.dtype} {tuple(y.shape)}")

    def A(self, x: Images) -> Images:
        """x."""
        return x

    def AT(self, y: Images) -> Images:
        """y."""
        return y

    def select(self, index: Index) -> Identity:
        """The operator of the images `index` of the batch."""
        return self

    def prox_solve(self, v: Images, step: Factor) -> Images:
        """(I + τAᵀA)⁻¹ v, (b, c, h, w), in closed form; step τ: (b, 1, 1, 1)."""
        return v / (1 + step)

    def weighted_solve(self, v: Images, weights: Multiplier) -> Images:
        """(AᵀA + W)⁻¹ v, (b, c, h, w), in closed form."""
        return fourier_multiplier(v, 1 / (1 + weights))
