"""The metric of natural pictures: a quadratic form that says how much curvature a regularizer has at each frequency."""

from __future__ import annotations

import torch
from torch import Tensor

# ω_c in cycles per pixel. Denoisers trained for σ from 0.02 to 0.15 had it between 0.1 and 0.3: the careful end.
CORNER = 0.1
# The least weight, that of the mean brightness, over the largest; and what the weights rise to, for at high frequencies
# trained energies are up to half as much steeper again than the residual of a Wiener filter.
FLOOR, TOP = 0.1, 1.25


def natural_image_weights(size: tuple[int, int], like: Tensor) -> Tensor:
    """W(ω) = TOP max(|ω|² / (|ω|² + ω_c²), FLOOR): (h, w), on the grid of fft2, of the dtype and device of `like`.

    The power of natural pictures falls as 1/|ω|² (Field 1987), so that the residual x − D(x) of their Wiener filter D
    is W in the Fourier basis: a denoiser's energy has near this Hessian, up to a factor, for all pictures alike.
    """
    across, along = (torch.fft.fftfreq(n, dtype=like.dtype, device=like.device) for n in size)
    power = across.square().unsqueeze(1) + along.square()
    return TOP * (power / (power + CORNER**2)).clamp(min=FLOOR)


def fourier_multiplier(v: Tensor, weights: Tensor) -> Tensor:
    """W v = F⁻¹ diag(W) F v, (b, c, h, w), for weights W(ω) = W(−ω) that broadcast to (b, c, h, w)."""
    half = weights[..., : v.shape[-1] // 2 + 1] if weights.shape[-1] > 1 else weights
    return torch.fft.irfft2(half * torch.fft.rfft2(v), s=v.shape[-2:])
