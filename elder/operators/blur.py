"""Circular blur, with or without decimation: deblurring and super-resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from elder.operators.base import Operator
from elder.shapes import Anything, Factor, Images, Index, Multiplier, Size


@dataclass(frozen=True, eq=False)
class Blur(Operator):
    """A = S_s K: circular convolution, then every s-th pixel from [0, 0], (b, c, h, w) -> (b, c, h/s, w/s).

    The solves are in closed form for every s (Zhao et al. 2016): decimation folds the spectrum onto s² aliases, so that
    A W⁻¹ Aᵀ is diagonal in the Fourier basis of the small picture, and the Woodbury identity does the rest.
    """

    spectral = True

    kernel: Float[Tensor, "k l"] | Float[Tensor, "b 1 k l"]  # its middle pixel is the origin
    # fft2 of the kernel on the picture's grid.
    response: Complex[Tensor, "h w"] | Complex[Tensor, "b 1 h w"]
    scale: int = 1

    @classmethod
    def of(cls, kernel: Float[Tensor, "k l"] | Float[Tensor, "b 1 k l"], size: Size, scale: int = 1) -> Blur:
        """The blur of pictures of `size` by `kernel`, (k, l) or (b, 1, k, l), whose middle pixel is the origin.

        Raises `ValueError` when the kernel does not sum to 1 or is larger than the picture, or s does not divide it.
        """
        sums = kernel.sum((-2, -1))
        if not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            raise ValueError(f"Blur(kernel=...) must sum to 1; got {float(sums.flatten()[0]):.3f}")
        if kernel.shape[-2] > size[0] or kernel.shape[-1] > size[1]:
            raise ValueError(f"the kernel is {_size(kernel)}, larger than the image {size[0]}x{size[1]}")
        if size[0] % scale or size[1] % scale:
            raise ValueError(f"scale={scale} must divide the image's size; got {size[0]}x{size[1]}")
        padded = kernel.new_zeros((*kernel.shape[:-2], *size))
        padded[..., : kernel.shape[-2], : kernel.shape[-1]] = kernel
        origin = (-(kernel.shape[-2] // 2), -(kernel.shape[-1] // 2))
        return cls(kernel, torch.fft.fft2(padded.roll(origin, (-2, -1))), scale)

    def check(self, y: Anything) -> None:
        """Raise `ValueError` if y does not have the shape and type of a measurement."""
        h, w = (n // self.scale for n in self.response.shape[-2:])
        if y.ndim != 4 or y.is_complex() or tuple(y.shape[-2:]) != (h, w):
            raise ValueError(f"the measurement must be real (b, c, {h}, {w}); got {y.dtype} {tuple(y.shape)}")

    def A(self, x: Images) -> Float[Tensor, "b c p q"]:
        """Circular convolution, then every s-th pixel: (b, c, h, w) -> (b, c, h/s, w/s).

        Raises `ValueError` for pictures of another size.
        """
        if x.shape[-2:] != self.response.shape[-2:]:
            raise ValueError(f"the operator is for images {_size(self.response)}; got {_size(x)}")
        blurred = torch.fft.ifft2(self.response * torch.fft.fft2(x)).real
        return blurred[..., :: self.scale, :: self.scale]

    def AT(self, y: Float[Tensor, "b c p q"]) -> Images:
        """Zeros between the pixels, then circular correlation: (b, c, h/s, w/s) -> (b, c, h, w)."""
        if self.scale > 1:
            full = y.new_zeros((*y.shape[:-2], *(n * self.scale for n in y.shape[-2:])))
            full[..., :: self.scale, :: self.scale] = y
            y = full
        return torch.fft.ifft2(self.response.conj() * torch.fft.fft2(y)).real

    def prox_solve(self, v: Images, step: Factor) -> Images:
        """(I + τAᵀA)⁻¹v, the weights of `weighted_solve` being 1/τ."""
        return self.weighted_solve(v / step, 1 / step)

    def weighted_solve(self, v: Images, weights: Multiplier) -> Images:
        """(AᵀA + W)⁻¹v = u − W⁻¹Aᵀ(I + AW⁻¹Aᵀ)⁻¹Au with u = W⁻¹v, all of it in the Fourier basis."""
        u = torch.fft.fft2(v) / weights
        folded = self._fold(self.response.abs().square() / weights) / self.scale**2
        small = self._fold(self.response * u) / self.scale**2 / (1 + folded)
        return torch.fft.ifft2(u - self.response.conj() / weights * small.tile(self.scale, self.scale)).real

    def select(self, index: Index) -> Blur:
        """The operator of the images `index` of the batch."""
        return self if self.kernel.ndim == 2 else Blur(self.kernel[index], self.response[index], self.scale)

    def _fold(self, spectrum: Inexact[Tensor, "*n h w"]) -> Inexact[Tensor, "*n p q"]:
        """The sum over aliases, (..., h, w) -> (..., h/s, w/s)."""
        h, w = (n // self.scale for n in spectrum.shape[-2:])
        return spectrum.unflatten(-1, (self.scale, w)).unflatten(-3, (self.scale, h)).sum((-4, -2))


def _size(a: Anything) -> str:
    return f"{a.shape[-2]}x{a.shape[-1]}"
