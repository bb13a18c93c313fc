"""How far a reconstruction is from the truth."""

from __future__ import annotations

import torch
from skimage.metrics import structural_similarity
from torch import Tensor


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (b, c, h, w) -> (b,): x clipped to [0, 1], peak 1, no border cut."""
    error = (x.clamp(0, 1) - truth).double().square().flatten(1).mean(1)
    return -10 * torch.log10(error)


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each clipped image, (b, c, h, w) -> (b,): scikit-image's with data_range 1."""
    pairs = zip(x.clamp(0, 1).cpu().double().numpy(), truth.cpu().double().numpy(), strict=True)
    return torch.tensor([structural_similarity(a, b, data_range=1.0, channel_axis=0) for a, b in pairs])
