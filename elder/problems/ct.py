"""Computed tomography with few angles: y = R x + e."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from elder.errors import UserError
from elder.operators.base import Operator
from elder.operators.radon import Radon
from elder.problems.base import Problem, Size


@dataclass(frozen=True)
class CT(Problem):
    """y = R x + e, parallel beam, at `angles` equidistant angles of a half turn; R scaled to a norm near 1."""

    name: ClassVar[str] = "ct"
    initial_name: ClassVar[str] = "filtered back-projection"
    angles: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.angles < 1:
            raise UserError(f"angles={self.angles} must be at least 1")

    def operator(self, size: Size, batch: int, generator: torch.Generator) -> Radon:
        """Parallel-beam projections over half a turn."""
        return _radon(self.angles, tuple(size))

    def bind(self, y: Tensor, **arguments: Any) -> Radon:
        """size: (h, w) of the picture; a sinogram alone tells only its diagonal, so a square is taken without it."""
        if "size" in arguments:
            size = tuple(int(n) for n in np.asarray(arguments["size"]).flatten())
        else:
            side = math.floor((y.shape[-1] - 1) / math.sqrt(2))
            size = (side, side)
        return _radon(y.shape[-2], size)

    def arguments(self, operator: Operator) -> dict[str, np.ndarray]:
        """What a measurement file holds beside y; see `Problem.arguments`."""
        return {"size": np.array(operator.size)} if isinstance(operator, Radon) else {}

    def initial(self, operator: Operator, y: Tensor) -> Tensor:
        """Back-projection of the ramp-filtered rays, its scale fitted to y."""
        n = 2 ** math.ceil(math.log2(2 * y.shape[-1]))
        ramp = torch.fft.rfftfreq(n, dtype=y.dtype, device=y.device)
        filtered = torch.fft.irfft(torch.fft.rfft(y, n) * ramp, n)[..., : y.shape[-1]]
        x = operator.AT(filtered)
        forward = operator.A(x)
        fit = (forward * y).sum((1, 2, 3)) / forward.square().sum((1, 2, 3)).clamp(min=1e-12)
        return fit.view(-1, 1, 1, 1) * x


@lru_cache(maxsize=4)
def _radon(angles: int, size: tuple[int, int]) -> Radon:
    return Radon.of(torch.arange(angles, dtype=torch.float64) * math.pi / angles, size)
