"""Deblurring: y = K x + e with circular boundaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from elder.errors import UserError
from elder.operators.base import Operator
from elder.operators.blur import Blur
from elder.problems import kernels
from elder.problems.base import Problem, Size


@dataclass(frozen=True)
class Deblur(Problem):
    """y = K x + e, circular boundaries.

    kernel: gaussian; motion, a camera shake drawn for each image; or FILE or FILE:INDEX (.mat, .npy, .png).
    """

    name: ClassVar[str] = "deblur"
    initial_name: ClassVar[str] = "blurred"
    noise: float = 0.01
    kernel: str = "motion"

    @property
    def factor(self) -> int:
        """By how much the measurement is smaller than the picture."""
        return 1

    def kernels(self, batch: int, generator: torch.Generator) -> Tensor:
        """(batch, 1, k, l) drawn kernels, or (k, l) where all images share one."""
        if self.kernel == "gaussian":
            return kernels.gaussian()
        if self.kernel == "motion":
            return torch.stack([kernels.motion(generator) for _ in range(batch)]).unsqueeze(1)
        return kernels.load(self.kernel)

    def operator(self, size: Size, batch: int, generator: torch.Generator) -> Blur:
        """Circular blur by the kernel, which is drawn for each image or read from a file."""
        try:
            return Blur.of(self.kernels(batch, generator), size, self.factor)
        except ValueError as error:
            raise UserError(str(error)) from None

    def bind(self, y: Tensor, **arguments: Any) -> Blur:
        """The operator of the measurement y; see `Problem.bind`."""
        given = arguments.get("kernel", None if self.kernel in ("gaussian", "motion") else self.kernel)
        if given is None and self.kernel == "gaussian":
            kernel = kernels.gaussian()
        elif given is None:
            raise UserError(f"a {self.name} measurement needs its kernel: give kernel=FILE, or an .npz with `kernel`")
        elif isinstance(given, str):
            kernel = kernels.load(given)
        else:
            kernel = torch.from_numpy(np.asarray(given, dtype=np.float32))
        size = (y.shape[-2] * self.factor, y.shape[-1] * self.factor)
        return Blur.of(kernel, size, self.factor)

    def arguments(self, operator: Operator) -> dict[str, np.ndarray]:
        """What a measurement file holds beside y; see `Problem.arguments`."""
        return {"kernel": cast(Blur, operator).kernel.cpu().numpy()}

    def initial(self, operator: Operator, y: Tensor) -> Tensor:
        """y, the blurred picture."""
        return y
