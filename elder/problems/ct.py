"""Computed tomography: y = R x + e."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from elder.errors import DataWarning, UserError
from elder.operators.base import Operator
from elder.operators.radon import NEAR, PerAngle, Radon, Sinogram
from elder.problems.base import Problem
from elder.shapes import Argument, Images, Measurement, Size

# The widest picture, in detectors. Wider ones are mistakes, which would take all memory.
WIDEST = 8
# Angles, and detectors: more than any scanner has.
MOST = 100_000
# Settings and the arguments that they stand for.
SAID_BY = {"arc": "theta", "offset": "offset"}
# From this relative deviation on the sums of rows are doubted; from this number on, angles in a narrow range.
UNEVEN, FEW = 0.3, 8


@dataclass(frozen=True)
class CT(Problem):
    """y = R x + e in parallel beam, with line integrals in pixels divided by √(angles · detectors). See docs/ct.md.

    angles: how many, equidistant from 0 to `arc`, which is left out. arc: in degrees, in (0, 360]. detectors: of unit
    width, at each angle; if 0, as many as the diagonal of the picture is long. offset: by how many detectors the center
    of rotation is projected beyond the middle of the detectors. noise: standard deviation in the units of y.
    Raises `UserError` if a setting is out of its range.
    """

    name: ClassVar[str] = "ct"
    initial_name: ClassVar[str] = "filtered back-projection"
    operator_arguments: ClassVar[tuple[str, ...]] = ("size", "theta", "offset")
    drawing: ClassVar[tuple[str, ...]] = (*Problem.drawing, "angles", "detectors")
    angles: int = 60
    arc: float = 180.0
    detectors: int = 0
    offset: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.angles <= MOST:
            raise UserError(f"angles={self.angles} must be at least 1, and at most {MOST}")
        if not 0 < self.arc <= 360:
            raise UserError(f"arc={self.arc}: the range of the angles must be in (0, 360] degrees")
        if not 0 <= self.detectors <= MOST:
            raise UserError(
                f"detectors={self.detectors} must be at least 1, and at most {MOST}, or 0 for as many as the diagonal "
                "is long"
            )
        if not math.isfinite(self.offset):
            raise UserError(f"offset={self.offset} must be a number of detectors")

    def said_by(self, settings: Collection[str]) -> set[str]:
        """See `Problem.said_by`."""
        return {SAID_BY[name] for name in SAID_BY.keys() & settings}

    def operator(self, size: Size, batch: int, generator: torch.Generator) -> Radon:
        """Parallel-beam projections at equidistant angles."""
        return _radon(self._equidistant(self.angles), size, self.detectors or None, self.offset)

    def on_patches(self, share: float) -> CT:
        """As many angles per pixel as on whole pictures, and detectors in proportion. See `Problem.on_patches`.

        A sinogram of n angles determines about n pixels across: the angles that are few for a picture are many for a
        patch.
        """
        angles = max(1, round(min(share, 1.0) * self.angles))
        return replace(self, angles=angles, detectors=math.ceil(min(share, 1.0) * self.detectors))

    def bind(self, y: Measurement, **arguments: Argument) -> Radon:
        """The operator of the sinogram y, (b, c, angles, detectors); each argument has a default.

        size: (h, w) of the picture; by default the largest square that the detectors see whole at every angle. theta:
        (angles,) in degrees; by default equidistant over `arc`. offset: of the detectors, see `CT`.
        Raises `UserError` if an argument is not finite or does not fit y.
        """
        side = max(1, math.floor((y.shape[-1] - 1) / math.sqrt(2)))
        size = _real("size", arguments.get("size", (side, side)))
        if len(size) != 2 or not all(n >= 1 and n == int(n) for n in size):
            raise UserError(f"size={size.tolist()}: the size of the picture must be two positive numbers, h and w")
        if max(size) > WIDEST * y.shape[-1]:
            raise UserError(
                f"size={size.tolist()}: a picture more than {WIDEST} times as wide as the {y.shape[-1]} detectors"
            )
        theta = _real("theta", arguments.get("theta", self._equidistant(y.shape[-2])))
        if len(theta) != y.shape[-2] or not np.isfinite(theta).all():
            raise UserError(
                f"theta holds {len(theta)} angles for {y.shape[-2]} rows of the sinogram: it must hold a finite one, "
                "in degrees, for each row; is the sinogram (angles, detectors)?"
            )
        given = arguments.get("offset", self.offset)
        offset = _real("offset", given)
        if len(offset) != 1 or not math.isfinite(offset[0]):
            said = np.asarray(given).tolist()
            raise UserError(f"offset={said} must be one finite number of detectors, for all angles")
        return _radon(tuple(theta.tolist()), (int(size[0]), int(size[1])), y.shape[-1], float(offset[0]))

    def accept(self, y: Measurement, **arguments: Argument) -> tuple[Operator, Measurement]:
        """See `Problem.accept`. Warns of a sinogram that seems to be transposed, and of angles in radians."""
        operator = self.bind(y, **arguments)
        if not y.is_complex() and _unevenness(y.sum(-1)) > max(UNEVEN, 3 * _unevenness(y.sum(-2))):
            warnings.warn(
                "the sums of the sinogram's rows differ far more than those of its columns, but each angle sees the "
                "whole picture: is it (angles, detectors)? Else transpose it",
                DataWarning,
                stacklevel=2,
            )
        if (
            "theta" in arguments
            and operator.angles >= FEW
            and float(operator.theta.abs().max().rad2deg()) < 2 * math.pi
        ):
            warnings.warn("theta lies within 2π: is it in radians? It must be in degrees", DataWarning, stacklevel=2)
        return operator, y

    def arguments(self, operator: Operator) -> dict[str, np.ndarray]:
        """What a measurement file holds beside y; see `Problem.arguments`."""
        radon = cast(Radon, operator)
        theta = radon.theta.cpu().rad2deg().numpy()
        return {"size": np.array(radon.size), "theta": theta, "offset": np.array(radon.offset)}

    def initial(self, operator: Operator, y: Measurement) -> Images:
        """The filtered back-projection of y, (b, c, h, w)."""
        return filtered_back_projection(cast(Radon, operator), y)

    def _equidistant(self, angles: int) -> tuple[float, ...]:
        return tuple(self.arc * k / angles for k in range(angles))


def _unevenness(sums: Float[Tensor, "*n k"]) -> float:
    """The largest relative standard deviation along the last axis."""
    return float((sums.std(-1, correction=0) / sums.mean(-1).abs().clamp(min=1e-12)).max())


def filtered_back_projection(operator: Radon, y: Sinogram) -> Images:
    """∫ (r * p)(θ, s(θ)) dθ over half a turn: the ramp filter r over the projections p, back along the rays.

    The ramp |ν| ends at half a cycle per detector. It is sampled as a convolution kernel (Kak & Slaney 1988, §3.3),
    since on the grid of a Fourier transform it would lose the mean. The integral is a sum over the angles, each
    weighted by the range of directions that it stands for. y is p with the scale of R.

    y: (b, c, angles, detectors). Returns (b, c, h, w).
    """
    n = 2 ** math.ceil(math.log2(2 * y.shape[-1]))  # padded, so that the convolution does not wrap around
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    ramp = torch.where(k % 2 == 1, -1 / (math.pi * k).square(), 0.25 * (k == 0))
    response = torch.fft.rfft(ramp).real.to(y)
    filtered = torch.fft.irfft(response * torch.fft.rfft(y, n), n)[..., : y.shape[-1]]
    scale = operator.angles * operator.detectors  # y and the adjoint each have the root of it as a divisor
    return operator.AT(scale * directions(operator.theta).to(y).view(-1, 1) * filtered)


def directions(theta: PerAngle) -> PerAngle:
    """The range of directions, in radians, for which each of the angles θ stands; (angles,) both.

    Directions repeat after half a turn. Each angle stands for half of the gaps to its neighbors, and equal ones share.
    A gap of more than three times the median one is a wedge without data, and counts as a gap of median width.
    """
    keys = theta.remainder(math.pi).div(NEAR).round()
    found, index, counts = keys.unique(return_inverse=True, return_counts=True)
    gaps = NEAR * torch.cat([found, found[:1] + math.pi / NEAR]).diff()
    gaps = torch.where(gaps > 3 * gaps.median(), gaps.median(), gaps)
    return ((gaps + gaps.roll(1)) / 2 / counts)[index]


def _real(name: str, values: Argument) -> np.ndarray:
    """An argument in one row of float64. Raises `UserError` if it does not hold real numbers."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name} must hold real numbers; got {array.dtype}")
    return array.astype(np.float64).flatten()


@lru_cache(maxsize=4)
def _radon(theta: tuple[float, ...], size: tuple[int, int], detectors: int | None, offset: float) -> Radon:
    diagonal = math.hypot(*size)
    if abs(offset) >= ((detectors or diagonal) + diagonal) / 2:
        raise UserError(f"offset={offset:g}: none of the rays meets the picture of {size[0]}x{size[1]}")
    radians = torch.tensor(theta, dtype=torch.float64).deg2rad()
    return Radon.of(radians, size, detectors=detectors, offset=offset)
