"""Masks, 0/1: drawn ones of k-space, with the zero frequency at [0, 0] as `fft2` returns it, and those of files."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from elder import io
from elder.errors import DataWarning, UserError
from elder.shapes import Argument, Size

Mask = Float[Tensor, "h w"]
Angles = Float64[Tensor, " a"]


def radial(size: Size, ratio: float, generator: torch.Generator) -> Mask:
    """Lines through the center, at equal angles from a random one, as many as come nearest to `ratio`.

    Warns if so many lines as there can be sample less: the corners of a square lie beyond them.
    """
    offset = float(torch.rand((), generator=generator, dtype=torch.float64)) * math.pi
    low, high = 1, 4 * max(size)
    while low < high:  # the share sampled grows with the number of lines
        lines = (low + high) // 2
        if _reaches(ratio, size, lines, offset):
            high = lines
        else:
            low = lines + 1
    candidates = [_lines(size, lines, offset) for lines in (max(low - 1, 1), low)]
    nearest = min(candidates, key=lambda m: abs(float(m.mean()) - ratio))
    if low == 4 * max(size) and (most := float(nearest.mean())) < ratio - 0.02:
        message = (
            f"ratio={ratio:g}: radial lines sample {most:.2f} of {size[0]}x{size[1]} at most; mask=random gets there"
        )
        warnings.warn(message, DataWarning, stacklevel=2)
    return torch.fft.ifftshift(nearest)


def cartesian(size: Size, ratio: float, generator: torch.Generator) -> Mask:
    """Whole rows: a fully sampled band about the zero frequency, a third of the budget, the others at random."""
    h, w = size
    budget = max(1, round(ratio * h))
    band = max(1, budget // 3)
    frequency = torch.fft.fftfreq(h, d=1 / h).abs()
    order = torch.argsort(frequency, stable=True)
    others = order[band:]
    chosen = others[torch.randperm(len(others), generator=generator)[: budget - band]]
    mask = torch.zeros(h, w)
    mask[torch.cat([order[:band], chosen])] = 1
    return mask


def random(size: Size, ratio: float, generator: torch.Generator) -> Mask:
    """Single points at random, their density falling off with the frequency as (1 − |k|)³, low frequencies all."""
    h, w = size
    radius = torch.hypot(2 * torch.fft.fftfreq(h).unsqueeze(1), 2 * torch.fft.fftfreq(w).unsqueeze(0)) / 2**0.5
    density = (1 - radius).clamp(min=0) ** 3 + 1e-3
    density[radius < 0.06] = torch.inf
    # Exponential races: the smallest arrivals are a sample without replacement in proportion to the density.
    arrival = -torch.rand(h, w, generator=generator).clamp(min=1e-12).log() / density
    budget = max(1, round(ratio * h * w))
    mask = torch.zeros(h * w)
    mask[arrival.flatten().topk(budget, largest=False).indices] = 1
    return mask.view(h, w)


MASKS: dict[str, Callable[[Size, float, torch.Generator], Mask]] = {
    "radial": radial,
    "cartesian": cartesian,
    "random": random,
}


def load(mask: Argument) -> Float[Tensor, "*b h w"]:
    """The mask of an array or of a file, 0/1, (h, w) or (b, 1, h, w); see `io.binary`.

    Raises what `read` and `io.binary` raise.
    """
    if isinstance(mask, str | Path):
        return io.binary(read(mask), f"mask={mask}")
    return io.binary(np.asarray(mask), "mask")


def read(path: str | Path) -> np.ndarray:
    """The mask of a file: its array `mask` or `mask_matrix`, or its only one.

    Raises `UserError` if the file can't be read, or holds several arrays and none of these names.
    """
    arrays = io.read_arrays(path)
    found = [arrays[key] for key in ("mask", "mask_matrix") if key in arrays] or list(arrays.values())
    if len(found) > 1:
        raise UserError(f"{path}: holds {', '.join(sorted(arrays))}; call the mask `mask`")
    return found[0]


def _reaches(ratio: float, size: Size, lines: int, offset: float) -> bool:
    """Whether the mask of so many lines samples `ratio` or more: lines are drawn until they do, spread evenly."""
    canvas = _canvas(size)
    for first, every in ((0, 16), (8, 16), (4, 8), (2, 4), (1, 2)):
        _draw(canvas, size, _angles(lines, offset)[first::every])
        if float(_middle(canvas, size).mean()) >= ratio:
            return True
    return False


def _lines(size: Size, lines: int, offset: float) -> Mask:
    """`lines` diameters of the k-space rectangle, the zero frequency at the center."""
    canvas = _canvas(size)
    _draw(canvas, size, _angles(lines, offset))
    return _middle(canvas, size)


def _angles(lines: int, offset: float) -> Angles:
    return offset + torch.arange(lines, dtype=torch.float64) * math.pi / lines


def _canvas(size: Size) -> Float[Tensor, "n n"]:
    """A square that holds the lines whole, so that no point needs a test; its middle pixel is the zero frequency."""
    side = max(size) // 2 * 2 + 5
    return torch.zeros(side, side)


def _middle(canvas: Float[Tensor, "n n"], size: Size) -> Mask:
    """The k-space rectangle within the canvas."""
    (h, w), middle = size, len(canvas) // 2
    return canvas[middle - h // 2 :, middle - w // 2 :][:h, :w].contiguous()


def _draw(canvas: Float[Tensor, "n n"], size: Size, angles: Angles) -> None:
    """Set the pixels of the canvas that lines at these angles pass, as long as the longer side, every half pixel."""
    (h, w), middle = size, len(canvas) // 2
    reach = torch.arange(-max(size), max(size) + 1, dtype=torch.float64) / 2
    # In place: fresh memory would take most of the time.
    rows = (torch.sin(angles).unsqueeze(1) * reach).add_(h // 2).round_().add_(middle - h // 2)
    cols = (torch.cos(angles).unsqueeze(1) * reach).add_(w // 2).round_().add_(middle - w // 2)
    canvas.view(-1).index_fill_(0, rows.mul_(len(canvas)).add_(cols).long().view(-1), 1)
