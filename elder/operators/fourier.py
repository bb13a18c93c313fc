"""Undersampled Fourier measurements: Cartesian and pseudo-radial magnetic resonance imaging."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from elder.operators.base import Operator
from elder.shapes import Anything, Factor, Images, Index, KSpace, Multiplier
from elder.spectral import fourier_multiplier


@dataclass(frozen=True, eq=False)
class MaskedFourier(Operator):
    """A = M F on real pictures: orthonormal FFT, then a 0/1 mask, (b, c, h, w) -> complex (b, c, h, w).

    mask: (h, w), or (b, 1, h, w) for one mask an image, the zero frequency at [0, 0] as `fft2` returns it.
    On real pictures AᵀA = Re(Fᴴ M F) is diagonal in the Fourier basis, with the eigenvalues
    (M(k) + M(−k)) / 2, so the proximal map is exact for every mask, symmetric or not.
    Raises `ValueError` if the mask has another rank, or holds other numbers than 0 and 1.
    """

    spectral = True

    mask: Float[Tensor, "*b h w"]
    eigenvalues: Float[Tensor, "*b h w"] = field(init=False, repr=False)  # of AᵀA, on the grid of fft2

    def __post_init__(self) -> None:
        if self.mask.ndim not in (2, 4):
            raise ValueError(f"MaskedFourier(mask=...) must be (h, w) or (b, 1, h, w); got {tuple(self.mask.shape)}")
        if not bool(((self.mask == 0) | (self.mask == 1)).all()):
            raise ValueError("MaskedFourier(mask=...) must hold 0 and 1 only")
        mirrored = torch.roll(self.mask.flip((-2, -1)), (1, 1), (-2, -1))
        object.__setattr__(self, "eigenvalues", (self.mask + mirrored) / 2)

    def check(self, y: Anything) -> None:
        """Raise `ValueError` if y does not have the shape and type of a measurement."""
        if y.ndim != 4 or not y.is_complex():
            raise ValueError(f"a csmri measurement must be complex (b, c, h, w); got {y.dtype} {tuple(y.shape)}")
        if y.shape[-2:] != self.mask.shape[-2:]:
            raise ValueError(
                f"mask is {_size(self.mask)} but the measurement is {_size(y)}: give the mask that sampled it"
            )

    def A(self, x: Images) -> KSpace:
        """M ⊙ F x with the orthonormal Fourier transform F, (b, c, h, w) complex.

        Raises `ValueError` for pictures of another size.
        """
        if x.shape[-2:] != self.mask.shape[-2:]:
            raise ValueError(f"mask is {_size(self.mask)} but the image is {_size(x)}: they must be of one size")
        return self.mask * torch.fft.fft2(x, norm="ortho")

    def AT(self, y: KSpace) -> Images:
        """Re F⁻¹(M ⊙ y), (b, c, h, w)."""
        return torch.fft.ifft2(self.mask * y, norm="ortho").real

    def normal(self, x: Images) -> Images:
        """AᵀA x, (b, c, h, w), as a multiplier in the Fourier basis."""
        return fourier_multiplier(x, self.eigenvalues)

    def prox_solve(self, v: Images, step: Factor) -> Images:
        """(I + τ AᵀA)⁻¹ v in closed form."""
        return fourier_multiplier(v, 1 / (1 + step * self.eigenvalues))

    def weighted_solve(self, v: Images, weights: Multiplier) -> Images:
        """(AᵀA + W)⁻¹ v, (b, c, h, w), in closed form."""
        return fourier_multiplier(v, 1 / (self.eigenvalues + weights))

    def select(self, index: Index) -> MaskedFourier:
        """The operator of the images `index` of the batch."""
        return self if self.mask.ndim == 2 else MaskedFourier(self.mask[index])


def _size(a: Anything) -> str:
    return f"{a.shape[-2]}x{a.shape[-1]}"
