"""Per-image arithmetic on batches of pictures (b, c, h, w)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from elder.shapes import Features, Flags, Images, Measurement, OneOrEach, PerImage


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


def mixing_weights(
    differences: Float[Tensor, "b k n"], newest: Float[Tensor, "b n"], regularization: float
) -> Float64[Tensor, "b k 1"]:
    """The weights α of older residuals that Anderson's method mixes with the newest r, (b, k, 1), in float64.

    They minimize ‖r + Σ αᵢ (rᵢ − r)‖² + ρ tr(G) ‖α‖², G the Gram matrix of the differences rᵢ − r: constrained least
    squares, Σ of all weights 1, without its constraint (Walker and Ni 2011). A difference of zero gets the weight zero.
    regularization: ρ.
    """
    gram = (differences @ differences.transpose(1, 2)).double()
    target = -(differences @ newest.unsqueeze(2)).double()
    # Where nothing differs yet, the ridge must not be subnormal.
    trace = gram.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-200)
    ridge = torch.eye(differences.shape[1], dtype=gram.dtype, device=gram.device) * regularization
    return torch.linalg.solve(gram + ridge * trace.view(-1, 1, 1), target)


def only(images: Flags, v: Images) -> Images:
    """v, (b, c, h, w), at the images for which `images`, (b,), holds; zero at the others, whatever v is there."""
    return torch.where(per_image(images, v) > 0, v, 0.0)


def wrapped(x: Features, margin: int) -> Float[Tensor, "b f h+2*{margin} w+2*{margin}"]:
    """x, (b, f, h, w), continued periodically by `margin` pixels on each side, which may be more than h and w."""
    if min(x.shape[2:]) >= margin:
        return F.pad(x, (margin,) * 4, mode="circular")
    for dim in (2, 3):
        x = x.index_select(dim, _around(x.shape[dim], margin, x))
    return x


def folded(x: Features, margin: int) -> Float[Tensor, "b f h-2*{margin} w-2*{margin}"]:
    """The adjoint of `wrapped`: what stands beyond each side is added where it was taken from."""
    for dim in (2, 3):
        size = x.shape[dim] - 2 * margin
        if size < margin:
            shape = [*x.shape[:dim], size, *x.shape[dim + 1 :]]
            x = x.new_zeros(shape).index_add(dim, _around(size, margin, x), x)
            continue
        before, inner, after = x.split([margin, size, margin], dim)
        inner = inner.clone()
        inner.narrow(dim, size - margin, margin).add_(before)
        inner.narrow(dim, 0, margin).add_(after)
        x = inner
    return x


def _around(size: int, margin: int, like: Tensor) -> Tensor:
    """The indices of an axis of `size` that is continued periodically by `margin` on both sides."""
    return torch.arange(-margin, size + margin, device=like.device) % size
