"""Linear systems H v = b, one an image, solved in a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch

from elder.shapes import Flags, Images, PerImage
from elder.tensors import norm

Map = Callable[[Images], Images]

# The relative residual of v = 0: beyond, a solution is worse than none, however large its tolerance.
USABLE = 1.0


@dataclass(frozen=True, eq=False)
class LinearSolution:
    """What a linear solve returns; residual is the true ‖b − H v‖ / ‖b‖, from products with H that the solve made."""

    v: Images
    residual: PerImage
    converged: Flags  # to the tolerance that was asked for; a truncated series has none
    usable: Flags  # within ten times that, and within `USABLE`; of a truncated series: finite
    products: int  # products with H


@runtime_checkable
class LinearSolver(Protocol):
    """v with H v = b, image by image.

    H: (b, c, h, w) -> (b, c, h, w), linear, on each image alone. precondition: a map P of the same shapes, symmetric,
    positive definite and near H⁻¹. contraction: whether the method converges only if I − PH is a contraction.
    """

    contraction: ClassVar[bool]

    def __call__(self, H: Map, b: Images, precondition: Map) -> LinearSolution:
        """Solve H v = b for each image; b: (b, c, h, w)."""
        ...


@dataclass(frozen=True)
class IterativeSolver(ABC):
    """A solver that iterates. tol: relative residual to stop at; max_steps: products with H at most.

    Raises `ValueError` for tol <= 0 or max_steps < 1.
    """

    contraction: ClassVar[bool] = False

    tol: float = 1e-3
    max_steps: int = 100

    def __post_init__(self) -> None:
        if self.tol <= 0 or self.max_steps < 1:
            name = type(self).__name__
            raise ValueError(f"{name} needs tol > 0 and max_steps >= 1; got tol={self.tol}, max_steps={self.max_steps}")

    @abstractmethod
    def __call__(self, H: Map, b: Images, precondition: Map) -> LinearSolution:
        """Solve H v = b for each image; see `LinearSolver`."""


def solution(v: Images, left: PerImage, b: Images, products: int, tol: float) -> LinearSolution:
    """What is known of v where ‖b − H v‖ = `left`, (b,), and at most tol ‖b‖ was asked for."""
    scale = norm(b)
    residual = left / scale.clamp(min=torch.finfo(torch.float64).tiny)
    usable = residual <= max(tol, min(10 * tol, USABLE))
    return LinearSolution(v, residual, left <= tol * scale, usable, products)
