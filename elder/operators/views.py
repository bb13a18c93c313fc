"""The symmetries of the square: views of a picture whose projections are the same, at other rays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

# θ in radians, or s in pixels, of each ray; and a whole number for each.
PerRay = Float64[Tensor, "rays"]
RayIndex = Int64[Tensor, "rays"]


@dataclass(frozen=True)
class Views:
    """Pictures mirrored left to right, transposed, and turned by 180°, in every combination of those that are chosen.

    The ray (θ, s) is the line x cos θ + y sin θ = s. Its integral over a picture is that over the mirrored picture at
    (π − θ, s), over the transposed one at (π/2 − θ, s), and over the turned one at (θ, −s).
    """

    mirrored: bool
    transposed: bool  # for square pictures alone
    turned: bool

    @property
    def count(self) -> int:
        """The number of views: 1, 2, 4 or 8."""
        return 2 ** (self.mirrored + self.transposed + self.turned)

    def fold(self, theta: PerRay, s: PerRay) -> tuple[PerRay, PerRay, RayIndex]:
        """For each ray (θ, s), the equivalent ray of least θ and s, and the view that has it; (rays,) each.

        theta: θ in radians, s: in pixels. The views are numbered in the order of `stack`.
        """
        theta = theta.remainder(2 * math.pi)
        opposite = theta >= math.pi  # the same line the other way round
        theta, s = torch.where(opposite, theta - math.pi, theta), torch.where(opposite, -s, s)
        view, bit = torch.zeros_like(theta, dtype=torch.long), 1
        if self.mirrored:
            swap = theta > math.pi / 2
            theta, view, bit = torch.where(swap, math.pi - theta, theta), view + bit * swap, 2 * bit
        if self.transposed:
            swap = theta > math.pi / 4
            theta, view, bit = torch.where(swap, math.pi / 2 - theta, theta), view + bit * swap, 2 * bit
        if self.turned:
            s, view = s.abs(), view + bit * (s < 0)
        return theta, s, view

    def stack(self, x: Float[Tensor, "n h w"]) -> Float[Tensor, "{self.count} n h w"]:
        """The views of the pictures x, (n, h, w) -> (count, n, h, w)."""
        x = x.unsqueeze(0)
        if self.mirrored:
            x = torch.cat([x, x.flip(-1)])
        if self.transposed:
            x = torch.cat([x, x.mT])
        if self.turned:
            x = torch.cat([x, x.flip(-2, -1)])
        return x

    def merge(self, v: Float[Tensor, "{self.count} n h w"]) -> Float[Tensor, "n h w"]:
        """The adjoint of `stack`, (count, n, h, w) -> (n, h, w)."""
        if self.turned:
            a, b = v.chunk(2)
            v = a + b.flip(-2, -1)
        if self.transposed:
            a, b = v.chunk(2)
            v = a + b.mT
        if self.mirrored:
            a, b = v.chunk(2)
            v = a + b.flip(-1)
        return v.squeeze(0)


# From the most views to the picture alone.
VIEWS = [Views(*chosen) for chosen in product((True, False), repeat=3) if chosen[0] or not chosen[1]]
