"""Missing pixels: inpainting."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from elder.operators.base import Operator
from elder.shapes import Anything, Factor, Images, Index


@dataclass(frozen=True, eq=False)
class Masking(Operator):
    """A x = M ⊙ x, zero where a pixel is missing, (b, c, h, w) -> (b, c, h, w). mask: 0/1, (h, w) or (b, 1, h, w).

    Raises `ValueError` if the mask has another rank, or holds other numbers than 0 and 1.
    """

    mask: Float[Tensor, "*b h w"]

    def __post_init__(self) -> None:
        if self.mask.ndim not in (2, 4) or not bool(((self.mask == 0) | (self.mask == 1)).all()):
            raise ValueError("Masking(mask=...) must be (h, w) or (b, 1, h, w) and hold 0 and 1 only")

    def check(self, y: Anything) -> None:
        """Raise `ValueError` if y does not have the shape and type of a measurement."""
        if y.ndim != 4 or y.is_complex() or y.shape[-2:] != self.mask.shape[-2:]:
            h, w = self.mask.shape[-2:]
            raise ValueError(f"the measurement must be real (b, c, {h}, {w}), as the mask; got {tuple(y.shape)}")

    def A(self, x: Images) -> Images:
        """M ⊙ x, (b, c, h, w). Raises `ValueError` for pictures of another size."""
        if x.shape[-2:] != self.mask.shape[-2:]:
            (h, w), (k, m) = self.mask.shape[-2:], x.shape[-2:]
            raise ValueError(f"mask is {h}x{w} but the image is {k}x{m}: they must be of one size")
        return self.mask * x

    def AT(self, y: Images) -> Images:
        """M ⊙ y, (b, c, h, w)."""
        return self.mask * y

    def prox_solve(self, v: Images, step: Factor) -> Images:
        """(I + τAᵀA)⁻¹ v, (b, c, h, w), in closed form; step τ: (b, 1, 1, 1)."""
        return v / (1 + step * self.mask)

    def select(self, index: Index) -> Masking:
        """The operator of the images `index` of the batch."""
        return self if self.mask.ndim == 2 else Masking(self.mask[index])
