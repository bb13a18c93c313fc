"""What deblurring and super-resolution share: a circular blur by a kernel, then every s-th pixel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from elder.errors import UserError
from elder.operators.base import Operator
from elder.operators.blur import Blur
from elder.problems import kernels
from elder.problems.base import Problem, check_batch
from elder.shapes import Argument, Measurement, Size

# Kernels that are made here. Any other name is that of a file.
MADE = ("gaussian", "motion")


@dataclass(frozen=True)
class BlurProblem(Problem):
    """y = S_s K x + e: circular convolution, then every s-th pixel from [0, 0].

    kernel: gaussian; motion, a camera shake drawn for each image; or FILE or FILE:INDEX (.mat, .npy, .png).
    Raises `UserError` if `noise` is not in [0, 1], or if the file holds no such kernel.
    """

    operator_arguments: ClassVar[tuple[str, ...]] = ("kernel",)
    drawing: ClassVar[tuple[str, ...]] = (*Problem.drawing, "kernel")
    kernel: str = "gaussian"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.file_arrays()  # which raises for a file without a kernel

    @property
    @abstractmethod
    def factor(self) -> int:
        """s: by how much the measurement is smaller than the picture."""

    def kernels(self, batch: int, generator: torch.Generator) -> Float[Tensor, "k l"] | Float[Tensor, "b 1 k l"]:
        """(batch, 1, k, l) drawn kernels, or (k, l) where all images share one.

        Raises `UserError` if the file holds no such kernel.
        """
        if self.kernel == "gaussian":
            return kernels.gaussian()
        if self.kernel == "motion":
            return torch.stack([kernels.motion(generator) for _ in range(batch)]).unsqueeze(1)
        return kernels.load(self.kernel)

    def file_arrays(self) -> dict[str, np.ndarray]:
        """See `Problem.file_arrays`."""
        return {} if self.kernel in MADE else {"kernel": kernels.load(self.kernel).numpy()}

    def said_by(self, settings: Collection[str]) -> set[str]:
        """See `Problem.said_by`: any kernel but that of a camera shake."""
        return {"kernel"} & set(settings) if self.kernel != "motion" else set()

    def check_size(self, size: Size) -> None:
        """See `Problem.check_size`: the kernel must fit into the picture, and s must divide its size."""
        self.operator(size, 1, torch.Generator())

    def operator(self, size: Size, batch: int, generator: torch.Generator) -> Blur:
        """Circular blur by the kernel, which is drawn for each image or read from a file.

        Raises `UserError` if the kernel is larger than pictures of this size, or if s does not divide the size.
        """
        try:
            return Blur.of(self.kernels(batch, generator), size, self.factor)
        except ValueError as error:
            raise UserError(str(error)) from None

    def bind(self, y: Measurement, **arguments: Argument) -> Blur:
        """The operator of the measurement y; see `Problem.bind`.

        Raises `UserError` if the kernel is missing or can't be used. Raises `ValueError` if it is larger than the
        picture.
        """
        return self._bound(y, self.factor, **arguments)

    def _bound(self, y: Measurement, factor: int, **arguments: Argument) -> Blur:
        """The operator of the measurement y of a picture that is `factor` times as large."""
        given = arguments.get("kernel", None if self.kernel in MADE else self.kernel)
        if given is None and self.kernel == "gaussian":
            kernel = kernels.gaussian()
        elif given is None:
            raise UserError(f"a {self.name} measurement needs its kernel: give kernel=FILE, or an .npz with `kernel`")
        elif isinstance(given, str):
            kernel = kernels.load(given)
        else:
            kernel = kernels.normalized(np.asarray(given), "kernel")
        check_batch("kernel", kernel, y)
        return Blur.of(kernel, (y.shape[-2] * factor, y.shape[-1] * factor), factor)

    def arguments(self, operator: Operator) -> dict[str, np.ndarray]:
        """What a measurement file holds beside y; see `Problem.arguments`."""
        return {"kernel": cast(Blur, operator).kernel.cpu().numpy()}
