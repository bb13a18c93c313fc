"""Super-resolution: y = S_s K x + e with circular boundaries."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from elder.errors import UserError
from elder.operators.base import Operator
from elder.operators.blur import Blur
from elder.problems.blur import BlurProblem
from elder.shapes import Argument, Images, Measurement
from elder.tensors import wrapped

SCALES = (2, 3, 4)


@dataclass(frozen=True)
class SuperResolution(BlurProblem):
    """y = S_s K x + e: blur, then every s-th pixel from [0, 0]. scale s: 2, 3 or 4; kernel as for `BlurProblem`.

    The initial guess is bicubic, moved by half the difference of the pixel grids: pixel i of y stands at s·i of x,
    whereas interpolation takes it for the middle of its s pixels, (s − 1)/2 further on.
    Raises `UserError` if `scale` is another number, and what `BlurProblem` raises.
    """

    name: ClassVar[str] = "superres"
    initial_name: ClassVar[str] = "bicubic"
    operator_arguments: ClassVar[tuple[str, ...]] = ("kernel", "scale")
    scale: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in SCALES:
            raise UserError(f"scale={self.scale} of superres must be 2, 3 or 4")

    @property
    def factor(self) -> int:
        """s: by how much the measurement is smaller than the picture."""
        return self.scale

    def said_by(self, settings: Collection[str]) -> set[str]:
        """See `Problem.said_by`."""
        return super().said_by(settings) | ({"scale"} & set(settings))

    def bind(self, y: Measurement, **arguments: Argument) -> Blur:
        """See `BlurProblem.bind`. scale: that of y, 2, 3 or 4; by default the problem's.

        Raises `UserError` for another scale, and what `BlurProblem.bind` raises.
        """
        given = np.asarray(arguments.get("scale", self.scale)).flatten()
        if len(given) != 1 or given[0] not in SCALES:
            raise UserError(f"scale={given.tolist()} of a superres measurement must be 2, 3 or 4")
        return self._bound(y, int(given[0]), **arguments)

    def arguments(self, operator: Operator) -> dict[str, np.ndarray]:
        """What a measurement file holds beside y; see `Problem.arguments`."""
        return {**super().arguments(operator), "scale": np.array(cast(Blur, operator).scale)}

    def initial(self, operator: Operator, y: Measurement) -> Images:
        """Bicubic interpolation of y, aligned with the pixels that were kept."""
        return shifted_bicubic(y, cast(Blur, operator).scale)


def shifted_bicubic(y: Images, scale: int) -> Float[Tensor, "b c {scale}*h {scale}*w"]:
    """Bicubic interpolation whose pixel (s·i, s·j) is pixel (i, j) of y, (b, c, h, w) -> (b, c, s·h, s·w), circular."""
    margin = 3
    wide = wrapped(y, margin)
    h, w = (n * scale for n in y.shape[-2:])
    # With corners aligned, the sample at s·i of the result is exactly sample i.
    size = tuple((n - 1) * scale + 1 for n in wide.shape[-2:])
    up = F.interpolate(wide, size=size, mode="bicubic", align_corners=True)
    start = margin * scale
    return up[..., start : start + h, start : start + w]
