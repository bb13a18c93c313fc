"""Inpainting: y = M x + e."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch

from elder.errors import UserError
from elder.fidelity import Fidelity, HardConstraint
from elder.operators.base import Operator
from elder.operators.masking import Masking
from elder.problems.base import Problem
from elder.shapes import Argument, Images, Measurement, Size


@dataclass(frozen=True)
class Inpaint(Problem):
    """y = M x + e, with single pixels missing at random. missing: their share, in [0, 1).

    Without noise the pixels that are there are kept as they are: a hard constraint takes the place of ½‖A x − y‖².
    """

    name: ClassVar[str] = "inpaint"
    initial_name: ClassVar[str] = "local mean"
    missing: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.missing < 1:
            raise UserError(f"missing={self.missing}: the share of missing pixels must be in [0, 1)")

    def operator(self, size: Size, batch: int, generator: torch.Generator) -> Masking:
        """A mask for each image that leaves out each pixel with probability `missing`."""
        return Masking((torch.rand(batch, 1, *size, generator=generator) >= self.missing).float())

    def draw_noise(self, operator: Operator, y: Measurement, generator: torch.Generator) -> Measurement:
        """Standard normal noise on the pixels that are measured."""
        return cast(Masking, operator).mask * super().draw_noise(operator, y, generator)

    def bind(self, y: Measurement, **arguments: Argument) -> Masking:
        """The operator of the measurement y; see `Problem.bind`."""
        if "mask" not in arguments:
            raise UserError("an inpaint measurement needs its mask, 1 where a pixel is there: an .npz with `mask`")
        return Masking(torch.from_numpy((np.asarray(arguments["mask"]) > 0).astype(np.float32)))

    def fidelity(self, operator: Operator, y: Measurement) -> Fidelity:
        """A hard constraint if there is no noise, else least squares."""
        return HardConstraint.of(cast(Masking, operator), y) if self.noise == 0 else super().fidelity(operator, y)

    def arguments(self, operator: Operator) -> dict[str, np.ndarray]:
        """What a measurement file holds beside y; see `Problem.arguments`."""
        return {"mask": cast(Masking, operator).mask.cpu().numpy().astype(np.uint8)}

    def initial(self, operator: Operator, y: Measurement) -> Images:
        """Missing pixels from the known ones about them, weighted by a Gaussian of 2 pixels."""
        mask = cast(Masking, operator).mask.to(y.dtype)
        weight = smooth(mask.expand(y.shape[0], 1, *y.shape[-2:])).clamp(min=1e-6)
        return torch.where(mask > 0, y, smooth(y) / weight)


def smooth(x: Images, sigma: float = 2.0) -> Images:
    """Circular Gaussian blur, (b, c, h, w)."""
    rows, columns = (torch.fft.fftfreq(n, dtype=x.dtype, device=x.device).square() for n in x.shape[-2:])
    transfer = torch.exp(-2 * (torch.pi * sigma) ** 2 * (rows.unsqueeze(1) + columns))
    return torch.fft.ifft2(torch.fft.fft2(x) * transfer).real
