"""Inpainting: y = M x + e."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from elder import io
from elder.errors import DataWarning, UserError
from elder.fidelity import Fidelity, HardConstraint
from elder.operators.base import Operator
from elder.operators.masking import Masking
from elder.problems import masks
from elder.problems.base import Problem, check_batch
from elder.shapes import Argument, Images, Measurement, Size


@dataclass(frozen=True)
class Inpaint(Problem):
    """y = M x + e.

    mask: random, single pixels missing, drawn for each image; or a file (.npy, .mat, .png), not zero where a pixel is
    there. missing: the share of pixels that a drawn mask leaves out, in [0, 1).
    Without noise the pixels that are there are kept as they are: a hard constraint takes the place of ½‖A x − y‖².
    Raises `UserError` if `noise` or `missing` is out of its range, or if `mask` is neither random nor a file.
    """

    name: ClassVar[str] = "inpaint"
    initial_name: ClassVar[str] = "local mean"
    operator_arguments: ClassVar[tuple[str, ...]] = ("mask",)
    drawing: ClassVar[tuple[str, ...]] = (*Problem.drawing, "mask", "missing")
    missing: float = 0.5
    mask: str = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.missing < 1:
            raise UserError(f"missing={self.missing}: the share of missing pixels must be in [0, 1)")
        if self.mask != "random" and not Path(self.mask).is_file():
            raise UserError(f"mask={self.mask}: neither random nor a file that exists")

    def operator(self, size: Size, batch: int, generator: torch.Generator) -> Masking:
        """Masking by a mask that is read from a file, or that leaves out each pixel with probability `missing`.

        Raises `UserError` if the file holds no mask of this size.
        """
        if self.mask != "random":
            fixed = _masking(self.mask)
            io.check_mask_size(fixed.mask, self.mask, size)
            return fixed
        return Masking((torch.rand(batch, 1, *size, generator=generator) >= self.missing).float())

    def check_size(self, size: Size) -> None:
        """See `Problem.check_size`."""
        if self.mask != "random":
            io.check_mask_size(_masking(self.mask).mask, self.mask, size)

    def file_arrays(self) -> dict[str, np.ndarray]:
        """See `Problem.file_arrays`."""
        return {} if self.mask == "random" else {"mask": masks.read(self.mask)}

    def draw_noise(self, operator: Operator, y: Measurement, generator: torch.Generator) -> Measurement:
        """Standard normal noise on the pixels that are measured."""
        return cast(Masking, operator).mask * super().draw_noise(operator, y, generator)

    def bind(self, y: Measurement, **arguments: Argument) -> Masking:
        """The operator of the measurement y; see `Problem.bind`.

        Raises `UserError` if the mask is missing or can't be used.
        """
        mask = arguments.get("mask", None if self.mask == "random" else self.mask)
        if mask is None:
            raise UserError(
                "an inpaint measurement needs its mask, 1 where a pixel is there: give mask=FILE, an .npz with `mask`, "
                "or a measurement whose missing pixels are NaN"
            )
        masking = _masking(mask)
        check_batch("mask", masking.mask, y)
        return masking

    def accept(self, y: Measurement, **arguments: Argument) -> tuple[Operator, Measurement]:
        """See `Problem.accept`. Pixels that are NaN are missing; they are the mask if none is given.

        What y holds at missing pixels, a photograph or a color that stands for holes, is no measurement: it becomes
        zero. Raises `UserError` if the mask is missing or can't be used, if its axes are exchanged against those of y,
        or if an image has no pixel. Warns if a pixel is NaN in some of its colors only: it is missing in all.
        """
        lacking = y.isnan()
        missing = lacking.any(1, keepdim=True)
        if bool(missing.flatten(1).all(1).any()):
            raise UserError("every pixel of the measurement is NaN in some color: nothing is left to inpaint from")
        if bool(missing.any()) and "mask" not in arguments and self.mask == "random":
            if bool((missing & ~lacking).any()):
                warnings.warn(
                    "some pixels are NaN in some of their colors only: they are taken as missing in all colors",
                    DataWarning,
                    stacklevel=2,
                )
            return Masking((~missing).float()), torch.where(missing, 0.0, y)
        operator = self.bind(y, **arguments)
        if _is_transposed(operator.mask, y):
            h, w = operator.mask.shape[-2:]
            raise UserError(f"the mask, {h}x{w}, is transposed against the measurement: exchange its axes")
        if operator.mask.shape[-2:] != y.shape[-2:]:
            return operator, y
        there = operator.mask.expand_as(y) > 0
        if bool((y[there] == 0).all()) and bool((y[~there].nan_to_num() != 0).any()):
            warnings.warn(
                "every pixel that the mask says is there is zero, and others are not: is the mask inverted? It must be "
                "zero where a pixel is missing",
                DataWarning,
                stacklevel=2,
            )
        return operator, torch.where(operator.mask == 0, 0.0, y)

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


def _is_transposed(mask: Float[Tensor, "*n h w"], y: Measurement) -> bool:
    """Whether the mask, (h, w) or (b, 1, h, w), fits y with its axes exchanged, and not as it is.

    A mask fits if it has the size of y, and y is zero or NaN where it says that a pixel is missing.
    """

    def fits(one: Float[Tensor, "*n k l"]) -> bool:
        return one.shape[-2:] == y.shape[-2:] and not bool((y.nan_to_num() * (one == 0)).any())

    sizes = mask.shape[-2:], y.shape[-2:]
    return not fits(mask) and (fits(mask.mT) or sizes[0] == sizes[1][::-1] != sizes[1])


def _masking(mask: Argument) -> Masking:
    return Masking(masks.load(mask))


def smooth(x: Images, sigma: float = 2.0) -> Images:
    """Circular Gaussian blur, (b, c, h, w)."""
    rows, columns = (torch.fft.fftfreq(n, dtype=x.dtype, device=x.device).square() for n in x.shape[-2:])
    transfer = torch.exp(-2 * (torch.pi * sigma) ** 2 * (rows.unsqueeze(1) + columns))
    return torch.fft.ifft2(torch.fft.fft2(x) * transfer).real
