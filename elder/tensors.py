"""Per-image arithmetic on batches of pictures (b, c, h, w)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from elder.shapes import Flags, Images, Measurement, OneOrEach, PerImage


def dot(a: Measurement, b: Measurement) -> PerImage:
    """Re⟨a, b⟩ of each image, (b, ...), (b, ...) -> (b,), summed in float64.

    Line search and stopping compare sums over a picture that differ in the last digits of float32.
    """
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    return (a * b).flatten(1).sum(1, dtype=torch.float64)


def norm(a: Measurement) -> PerImage:
    """‖a‖ of each image, (b, ...) -> (b,), in float64."""
    return dot(a, a).sqrt()


def per_image(a: OneOrEach | Flags, like: Measurement) -> Float[Tensor, "#b 1 1 1"]:
    """(b,) as (b, 1, 1, 1), in the dtype of `like`."""
    return a.to(like.dtype).view(-1, 1, 1, 1)


def only(images: Flags, v: Images) -> Images:
    """v, (b, c, h, w), at the images for which `images`, (b,), holds; zero at the others, whatever v is there."""
    return torch.where(per_image(images, v) > 0, v, 0.0)
