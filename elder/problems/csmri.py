"""Compressed-sensing magnetic resonance imaging: y = M F x + e."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch

from elder import io
from elder.errors import UserError
from elder.operators.base import Operator
from elder.operators.fourier import MaskedFourier
from elder.problems.base import Problem
from elder.problems.masks import MASKS
from elder.shapes import Argument, Measurement, Size


@dataclass(frozen=True)
class CSMRI(Problem):
    """y = M F x + e on real pictures x, with an orthonormal FFT F and a mask M; e is complex.

    mask: radial, cartesian or random, drawn for each image; or a file (.mat with `mask_matrix`, .npy, .png),
    the zero frequency at [0, 0]. ratio: the share of k-space that a drawn mask samples, in (0, 1].
    noise: standard deviation of the real and of the imaginary part.
    """

    name: ClassVar[str] = "csmri"
    initial_name: ClassVar[str] = "zero-filled"
    ratio: float = 0.2
    mask: str = "radial"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1:
            raise UserError(f"ratio={self.ratio}: the share of k-space sampled must be in (0, 1]")
        if self.mask not in MASKS and not Path(self.mask).is_file():
            raise UserError(f"mask={self.mask}: neither one of {', '.join(MASKS)} nor a file that exists")

    def operator(self, size: Size, batch: int, generator: torch.Generator) -> MaskedFourier:
        """Fourier sampling by the mask, which is drawn for each image or read from a file."""
        if self.mask in MASKS:
            masks = [MASKS[self.mask](size, self.ratio, generator) for _ in range(batch)]
            return MaskedFourier(torch.stack(masks).unsqueeze(1))
        mask = io.read_array(self.mask, key="mask_matrix")
        if mask.shape != tuple(size):
            raise UserError(
                f"mask={self.mask} is {mask.shape[0]}x{mask.shape[1]} but the image is {size[0]}x{size[1]}: "
                "they must be of one size"
            )
        return _operator(mask, self.mask)

    def draw_noise(self, operator: Operator, y: Measurement, generator: torch.Generator) -> Measurement:
        """Standard normal noise on the real and on the imaginary part of the samples."""
        real = torch.randn((*y.shape, 2), generator=generator, dtype=y.real.dtype)
        return cast(MaskedFourier, operator).mask * torch.view_as_complex(real)

    def bind(self, y: Measurement, **arguments: Argument) -> MaskedFourier:
        """The operator of the measurement y; see `Problem.bind`."""
        mask = arguments.get("mask", None if self.mask in MASKS else self.mask)
        if mask is None:
            raise UserError(
                "a csmri measurement needs the mask that sampled it: give mask=FILE, or an .npz with `mask`"
            )
        array = io.read_array(mask, key="mask_matrix") if isinstance(mask, str | Path) else np.asarray(mask)
        return _operator(array, str(mask) if isinstance(mask, str | Path) else "an array")

    def arguments(self, operator: Operator) -> dict[str, np.ndarray]:
        """What a measurement file holds beside y; see `Problem.arguments`."""
        return {"mask": cast(MaskedFourier, operator).mask.cpu().numpy().astype(np.uint8)}


def _operator(mask: np.ndarray, source: str) -> MaskedFourier:
    if mask.ndim == 3 and mask.shape[-1] in (3, 4):  # a color PNG of a black-and-white picture
        mask = mask[..., 0]
    values = np.unique(mask)
    if len(values) != 2 or values[0] != 0:
        raise UserError(f"mask={source} must hold two values, zero and one other; it holds {len(values)}")
    return MaskedFourier(torch.from_numpy((mask > 0).astype(np.float32)))
