"""Denoising: y = x + e."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from elder.operators.base import Operator
from elder.operators.identity import Identity
from elder.problems.base import Problem
from elder.shapes import Argument, Measurement, Size


@dataclass(frozen=True)
class Denoise(Problem):
    """y = x + e. Raises `UserError` if `noise` is not in [0, 1]."""

    name: ClassVar[str] = "denoise"
    initial_name: ClassVar[str] = "noisy"
    noise: float = 0.1

    def operator(self, size: Size, batch: int, generator: torch.Generator) -> Operator:
        """The identity."""
        return Identity()

    def bind(self, y: Measurement, **arguments: Argument) -> Operator:
        """The operator of the measurement y; see `Problem.bind`."""
        return Identity()

    def arguments(self, operator: Operator) -> dict[str, np.ndarray]:
        """What a measurement file holds beside y; see `Problem.arguments`."""
        return {}
