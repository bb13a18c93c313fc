"""Compressed-sensing magnetic resonance imaging: y = M F x + e."""

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
from elder.operators.base import Operator
from elder.operators.fourier import MaskedFourier
from elder.problems import masks
from elder.problems.base import Problem, check_batch
from elder.problems.masks import MASKS
from elder.shapes import Anything, Argument, KSpace, Measurement, Size

# Shares of samples that are zero, and of the norm of y that no real picture explains, from which y is doubted.
EMPTY, ODD = 0.1, 0.3


@dataclass(frozen=True)
class CSMRI(Problem):
    """y = M F x + e on real pictures x, with an orthonormal FFT F and a mask M; e is complex.

    mask: radial, cartesian or random, drawn for each image; or a file (.mat, .npz, .npy, .png).
    ratio: the share of k-space that a drawn mask samples, in (0, 1]. centered: whether masks and measurements of files
    have the zero frequency in the middle, as `fftshift` puts it, and not at [0, 0], where `fft2` does.
    noise: standard deviation of the real and of the imaginary part.
    Raises `UserError` if `noise` or `ratio` is out of its range, or if `mask` is neither a name nor a file.
    """

    name: ClassVar[str] = "csmri"
    initial_name: ClassVar[str] = "zero-filled"
    operator_arguments: ClassVar[tuple[str, ...]] = ("mask",)
    drawing: ClassVar[tuple[str, ...]] = (*Problem.drawing, "mask", "ratio")
    ratio: float = 0.2
    mask: str = "radial"
    centered: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1:
            raise UserError(f"ratio={self.ratio}: the share of k-space sampled must be in (0, 1]")
        if self.mask not in MASKS and not Path(self.mask).is_file():
            raise UserError(f"mask={self.mask}: neither one of {', '.join(MASKS)} nor a file that exists")

    def operator(self, size: Size, batch: int, generator: torch.Generator) -> MaskedFourier:
        """Fourier sampling by the mask, which is drawn for each image or read from a file.

        Raises `UserError` if the file holds no mask of this size.
        """
        if self.mask in MASKS:
            drawn = [MASKS[self.mask](size, self.ratio, generator) for _ in range(batch)]
            return MaskedFourier(torch.stack(drawn).unsqueeze(1))
        sampled = self._mask(self.mask)
        io.check_mask_size(sampled, self.mask, size)
        return MaskedFourier(sampled)

    def check_size(self, size: Size) -> None:
        """See `Problem.check_size`."""
        if self.mask not in MASKS:
            io.check_mask_size(self._mask(self.mask), self.mask, size)

    def file_arrays(self) -> dict[str, np.ndarray]:
        """See `Problem.file_arrays`."""
        return {} if self.mask in MASKS else {"mask": masks.read(self.mask)}

    def draw_noise(self, operator: Operator, y: Measurement, generator: torch.Generator) -> Measurement:
        """Standard normal noise on the real and on the imaginary part of the samples."""
        real = torch.randn((*y.shape, 2), generator=generator, dtype=y.real.dtype)
        return cast(MaskedFourier, operator).mask * torch.view_as_complex(real)

    def bind(self, y: Measurement, **arguments: Argument) -> MaskedFourier:
        """The operator of the measurement y; see `Problem.bind`.

        Raises `UserError` if the mask is missing or can't be used.
        """
        mask = arguments.get("mask", None if self.mask in MASKS else self.mask)
        if mask is None:
            raise UserError(
                "a csmri measurement needs the mask that sampled it: give mask=FILE, or an .npz with `mask`"
            )
        sampled = self._mask(mask)
        check_batch("mask", sampled, y)
        return MaskedFourier(sampled)

    def accept(self, y: Measurement, **arguments: Argument) -> tuple[Operator, Measurement]:
        """See `Problem.accept`. What y holds where the mask does not sample is no measurement: it becomes zero.

        Warns if the zero frequency does not seem to be where it is expected.
        """
        operator = self.bind(y, **arguments)
        if y.is_complex() and self.centered:
            y = torch.fft.ifftshift(y, (-2, -1))
        if y.is_complex() and y.shape[-2:] == operator.mask.shape[-2:]:
            advice = self._doubt(operator, y)
            if advice:
                warnings.warn(advice, DataWarning, stacklevel=2)
            y = torch.where(operator.mask == 0, 0.0, y)
        return operator, y

    def arguments(self, operator: Operator) -> dict[str, np.ndarray]:
        """What a measurement file holds beside y; see `Problem.arguments`."""
        mask = cast(MaskedFourier, operator).mask
        return {"mask": self._as_in_files(mask).cpu().numpy().astype(np.uint8)}

    def export(self, operator: Operator, y: Measurement) -> dict[str, np.ndarray]:
        """See `Problem.export`."""
        return super().export(operator, self._as_in_files(y))

    def _as_in_files(self, k: Anything) -> Anything:
        return torch.fft.fftshift(k, (-2, -1)) if self.centered else k

    def _mask(self, mask: Argument) -> Float[Tensor, "*b h w"]:
        """The mask of a file or an array, 0/1, (h, w) or (b, 1, h, w), the zero frequency at [0, 0]."""
        sampled = masks.load(mask)
        return torch.fft.ifftshift(sampled, (-2, -1)) if self.centered else sampled

    def _doubt(self, operator: MaskedFourier, y: KSpace) -> str:
        """Why y may not be what it seems to be, and what to do; empty where nothing tells."""
        where = "in the middle" if self.centered else "at [0, 0]"
        advice = f"is the zero frequency {where}? Else set centered={str(not self.centered).lower()}"
        if not bool(operator.mask[..., 0, 0].all()):
            return f"the mask leaves out the zero frequency: {advice}"
        # A picture x >= 0 has |F x| <= (F x)[0, 0], its sum.
        largest, zero = (y.abs().flatten(1).amax(1), y[..., 0, 0].abs().amax(1))
        if bool((largest > 1.2 * zero + 6 * self.noise).any()):
            return f"a sample of the measurement is larger than that of the zero frequency: {advice}"
        shown = y.abs().amax((-2, -1)) > 0  # the measurement of a black picture may be zero everywhere
        sampled = shown[..., None, None] & (operator.mask > 0)
        empty = float((y == 0)[sampled].float().mean())
        if empty > EMPTY:
            return (
                f"the measurement is zero at {empty:.0%} of the samples of its mask: is it its own? (Without noise, a "
                "pattern of few frequencies has such samples, too)"
            )
        # A real picture has F x(−k) = conj(F x(k)).
        mirrored = y.flip((-2, -1)).roll((1, 1), (-2, -1)).conj()
        pairs = operator.eigenvalues == 1
        odd, whole = (float((pairs * k).norm()) for k in ((y - mirrored) / 2, y))
        if odd > ODD * whole + 2 * self.noise * y.numel() ** 0.5:
            return (
                f"samples at k and −k are no conjugates, by {odd / whole:.0%}: the picture behind them is not real, as "
                "csmri takes it to be; combine coils and remove the phase first"
            )
        return ""
