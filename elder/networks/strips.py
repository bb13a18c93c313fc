"""A layer of many filters and the gradient through it, strip by strip, so that its output is never held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from elder.shapes import Features, PerImage

# Numbers of a strip: on a processor they stay in its cache, on an accelerator they are enough for all of it.
ON_PROCESSOR, ON_ACCELERATOR = 1 << 19, 1 << 27
# Σ ψ of each image, in float64, and ψ′, from the responses of some images of the batch.
Profile = Callable[[Features, slice], tuple[PerImage, Features]]


def value_and_grad(y: Features, kernel: Float[Tensor, "g f k k"], profile: Profile) -> tuple[PerImage, Features]:
    """Σ ψ(K * y), (b,) in float64, and its gradient Kᵀ ψ′(K * y), (b, f, h, w).

    K * y, (b, g, h − k + 1, w − k + 1), has no padding: the caller has padded y. For 60 filters and a picture of 12
    megapixels it takes 2.9 GB. Where autograd records, all of it would be kept anyway, so there is one strip.

    profile: gives Σ ψ(u), (n,) in float64, and ψ′(u) for responses u, (n, g, rows, columns), and the slice of images.
    """
    size, (filters, _, side, _) = len(y), kernel.shape
    height, width = y.shape[-2] - side + 1, y.shape[-1] - side + 1
    if torch.is_grad_enabled():
        return _strip(y, kernel, profile, slice(0, size))
    value, gradient = y.new_zeros(size, dtype=torch.float64), torch.zeros_like(y)
    limit = ON_PROCESSOR if y.device.type == "cpu" else ON_ACCELERATOR
    for images in _parts(size, limit // (filters * height * width)):
        for rows in _parts(height, limit // (filters * width)) if len(y[images]) == 1 else [slice(0, height)]:
            part = (images, slice(None), slice(rows.start, rows.stop + side - 1))
            found, back = _strip(y[part], kernel, profile, images)
            value[images] += found
            gradient[part] += back
    return value, gradient


def _strip(y: Features, kernel: Tensor, profile: Profile, images: slice) -> tuple[PerImage, Features]:
    value, slope = profile(F.conv2d(y, kernel), images)
    return value, F.conv_transpose2d(slope, kernel)


def _parts(count: int, most: int) -> Iterator[slice]:
    """Slices of `most` in a row, of one at least, that cover `count`."""
    step = max(1, most)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
