"""The areas that pixels share with the strips of parallel-beam detectors, as a sparse matrix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from elder.operators.views import PerRay

if TYPE_CHECKING:
    from scipy import sparse

# Areas below this, in pixels, are rounding.
SMALLEST = 1e-12
# Distances between the centers of pixels and strips, or areas, of any shape.
Lengths = Float64[Tensor, "*n"]


def areas(theta: PerRay, s: PerRay, size: tuple[int, int], dtype: torch.dtype) -> sparse.csr_array:
    """The area of each pixel within the strip of unit width around each ray, (rays, h w) of type `dtype`.

    The ray (θ, s) is the line x cos θ + y sin θ = s, where x counts columns to the right and y rows downward, in pixels
    from the center of the picture. Each angle is computed by itself, so its rays must be neighbors.

    theta: θ in radians, (rays,); s: in pixels, (rays,).
    """
    from scipy import sparse

    counts = theta.unique_consecutive(return_counts=True)[1].tolist()
    parts = []
    for angle, positions in zip(theta.split(counts), s.split(counts), strict=True):
        met, row, column, area = _areas(float(angle[0]), positions, size)
        parts.append((met.numpy(), (row * size[1] + column).int().numpy(), area.to(dtype).numpy()))
    met, pixels, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    starts = np.concatenate([[0], np.cumsum(met)]).astype(np.int32)
    return sparse.csr_array((values, pixels, starts), shape=(len(theta), size[0] * size[1]))


def _areas(
    theta: float, s: PerRay, size: tuple[int, int]
) -> tuple[Int64[Tensor, " rays"], Int64[Tensor, " areas"], Int64[Tensor, " areas"], Float64[Tensor, " areas"]]:
    """How many pixels each strip of one angle meets, (rays,); then the row, column and shared area of each of them."""
    if abs(math.cos(theta)) < abs(math.sin(theta)):
        met, column, row, area = _areas(math.pi / 2 - theta, s, (size[1], size[0]))
        return met, row, column, area
    h, w = size
    cos, sin = math.cos(theta), math.sin(theta)
    y = torch.arange(h, dtype=torch.float64) - (h - 1) / 2
    center = (s.view(-1, 1) - y * sin) / cos + (w - 1) / 2  # where the ray crosses each row
    # |cos θ| >= |sin θ|, so that a strip is less than 3.5 pixels wide along a row.
    column = center.floor().unsqueeze(2) + torch.arange(-1, 3)
    distance = cos * (center.unsqueeze(2) - column)
    near = (distance.abs() < (abs(cos) + abs(sin) + 1) / 2) & (column >= 0) & (column < w)
    area = shared_area(distance[near], theta)
    kept = area > SMALLEST
    ray, row, _ = (index[kept] for index in near.nonzero(as_tuple=True))
    return ray.bincount(minlength=len(s)), row, column[near][kept].long(), area[kept]


def shared_area(distance: Lengths, theta: float) -> Lengths:
    """The area that a unit square shares with a strip of unit width, by the distance of their centers.

    The projection of the square is a trapezoid, the convolution of two boxes of widths |cos θ| and |sin θ|. The area
    is its integral over the strip.
    """
    wide, narrow = sorted((abs(math.cos(theta)), abs(math.sin(theta))), reverse=True)
    narrow = max(narrow, 1e-300)

    def ramp(t: Lengths) -> Lengths:
        """The second integral of a box of width `narrow` and area 1."""
        return (t + narrow / 2).clamp(0, narrow).square() / (2 * narrow) + (t - narrow / 2).clamp(min=0)

    def integral(t: Lengths) -> Lengths:
        return (ramp(t + wide / 2) - ramp(t - wide / 2)) / wide

    return integral(distance + 0.5) - integral(distance - 0.5)
