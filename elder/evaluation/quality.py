"""How far a reconstruction is from the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from elder.errors import UserError
from elder.shapes import Size

# The least root mean square error that a picture of [0, 1] in float32 can be told from zero by: half a unit in its last
# place. PSNR is bounded by that of this error, 144.49 dB.
ROUNDING = torch.finfo(torch.float32).eps / 2
BOUND = -20 * math.log10(ROUNDING)
# dB from which a picture counts as exact: an error of a millionth of white, what a chain of float32 operations leaves.
EXACT = 120.0
WINDOW = 7  # scikit-image's default for SSIM


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (b, c, h, w) -> (b,): x clipped to [0, 1], peak 1, no border cut.

    Always finite. An exact reconstruction, a black picture of a black one for example, has no PSNR. It gets `BOUND`,
    144.49 dB, the PSNR of float32's rounding error. A pixel that is NaN counts as the end of [0, 1] that is farther
    from the truth.
    """
    error = (_clipped(x, truth) - truth).double().square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=ROUNDING**2))


def judged(values: Sequence[float], guesses: Sequence[float]) -> Sequence[float]:
    """The values that a mean is over: those of the images whose initial guess is not exact; all if every guess is.

    values: one an image, PSNR in dB for example. guesses: PSNR in dB of the initial guesses.

    A measurement whose initial guess is exact, that of a black picture for example, needs no reconstruction, and its
    bound of 144 dB would hide all others. The guess belongs to the measurement, so every method is judged by the same
    images.
    """
    return [value for value, guess in zip(values, guesses, strict=True) if guess < EXACT] or list(values)


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each clipped image, (b, c, h, w) -> (b,): scikit-image's with data_range 1.

    A pixel that is NaN is treated as in `psnr`. Raises `UserError` for pictures of less than 7x7 pixels, its window.
    """
    from skimage.metrics import structural_similarity  # with SciPy, half a second that few commands need

    check_size((truth.shape[-2], truth.shape[-1]))
    pairs = zip(_clipped(x, truth).cpu().double().numpy(), truth.cpu().double().numpy(), strict=True)
    return torch.tensor([structural_similarity(a, b, data_range=1.0, channel_axis=0) for a, b in pairs])


def check_size(size: Size) -> None:
    """Raise `UserError` if pictures of this size have no `ssim`."""
    if min(size) < WINDOW:
        h, w = size
        raise UserError(f"SSIM compares windows of {WINDOW}x{WINDOW} pixels; a picture of {h}x{w} is too small")


def _clipped(x: Tensor, truth: Tensor) -> Tensor:
    """x in [0, 1]; NaN becomes 0 or 1, whichever is farther from the truth."""
    return torch.where(x.isnan(), (truth < 0.5).to(x.dtype), x.clamp(0, 1))
