"""Fourier multipliers, and the metric of natural images: how much curvature a regularizer has at each frequency."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from elder.shapes import Anything, Images, Multiplier, Size

# ω_c in cycles per pixel. Denoisers that were trained for σ from 0.02 to 0.15 had it between 0.1 and 0.3. The least of
# these values is the safe one.
CORNER = 0.1
# FLOOR: the least weight, that of the mean brightness, divided by the largest. TOP: the limit of the weights at high
# frequencies. It exceeds 1, because trained energies are up to 1.5 times as steep there as a Wiener filter's residual.
FLOOR, TOP = 0.1, 1.25


def natural_image_weights(size: Size, like: Anything) -> Float[Tensor, "h w"]:
    """W(ω) = TOP max(|ω|² / (|ω|² + ω_c²), FLOOR): (h, w), on the grid of fft2, of the dtype and device of `like`.

    The power of natural images falls as 1/|ω|² (Field 1987). The residual x − D(x) of their Wiener filter D is then W
    in the Fourier basis. So the energy of a denoiser has about this Hessian, up to a factor, for every image.
    """
    across, along = (torch.fft.fftfreq(n, dtype=like.dtype, device=like.device) for n in size)
    power = across.square().unsqueeze(1) + along.square()
    return TOP * (power / (power + CORNER**2)).clamp(min=FLOOR)


def fourier_multiplier(v: Images, weights: Multiplier) -> Images:
    """W v = F⁻¹ diag(W) F v, (b, c, h, w), for weights W(ω) = W(−ω) that broadcast to (b, c, h, w)."""
    half = weights[..., : v.shape[-1] // 2 + 1] if weights.shape[-1] > 1 else weights
    return torch.fft.irfft2(half * torch.fft.rfft2(v), s=v.shape[-2:])
