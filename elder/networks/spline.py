"""Odd linear splines with bounded slopes: learned activations whose potential is known in closed form."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from elder.shapes import Anything

# One row for all images, or one for each.
Slopes = Float[Tensor, "#b cells"]


def lookup(t: Anything, slopes: Slopes, spacing: float) -> tuple[Anything, Anything]:
    """Φ(t) = ∫₀ᵗ φ and φ(t), of the shape of t, (b, ...).

    φ is odd, continuous and linear between knots at 0, ±Δ, ±2Δ, ...; `slopes` are those of its cells from 0 outward, a
    row for each image or one for all. Beyond the last knot φ is constant. Both results are differentiable in t and in
    the slopes. In t, φ has a derivative everywhere except at a knot, where that of the cell on its right is taken.

    spacing: Δ.
    """
    # The cells from −∞ to ∞; the outermost two are flat, and each begins at its left knot, the first at its right one.
    flat = F.pad(slopes, (0, 1))
    inner = torch.cat([flat.flip(1), flat], 1)
    rises = F.pad((spacing * slopes).cumsum(1), (1, 0))
    values = torch.cat([-rises[:, -1:], -rises.flip(1), rises[:, 1:]], 1)
    areas = F.pad((spacing * (rises[:, 1:] + rises[:, :-1]) / 2).cumsum(1), (1, 0))
    potentials = torch.cat([areas[:, -1:], areas.flip(1), areas[:, 1:]], 1)
    half = slopes.shape[1]
    with torch.no_grad():
        cell = (t / spacing).floor().add(half + 1).nan_to_num(nan=0.0).clamp(0, 2 * half + 1)
        left = (cell - half - 1).clamp(min=-half) * spacing
        index = cell.flatten(1).long()
        if len(slopes) > 1:
            index += inner.shape[1] * torch.arange(len(t), device=t.device).unsqueeze(1)
    tables = (table.flatten().index_select(0, index.flatten()) for table in (inner, values, potentials))
    slope, value, potential = (found.view_as(t) for found in tables)
    s = t - left
    phi = value + slope * s
    return potential + s * (value + phi) / 2, phi
