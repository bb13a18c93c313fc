"""The data term of pixels that are known exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from elder.fidelity.base import Fidelity, check_finite
from elder.operators.masking import Masking
from elder.shapes import Factor, Images, Index, Multiplier, OneOrEach, PerImage


@dataclass(frozen=True, eq=False)
class HardConstraint(Fidelity):
    """g(x) = 0 where M x = y, infinite elsewhere: measured pixels are kept as they are. Made by `HardConstraint.of`.

    For a mask M alone. Every iterate of a proximal method from a start that satisfies M x = y satisfies it, and so does
    every affine combination of such points; `value` is that of feasible points, which is zero.
    """

    constrains: ClassVar[bool] = True

    operator: Masking
    y: Images

    @classmethod
    def of(cls, operator: Masking, y: Images) -> HardConstraint:
        """The constraint of the measurement y. Raises `ValueError` when y is not finite or does not fit."""
        operator.check(y)
        check_finite(y)
        return cls(operator, y)

    def value(self, x: Images) -> PerImage:
        """Zero, (b, c, h, w) -> (b,) in float64."""
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def grad(self, x: Images) -> Images:
        """Zero: within the constraint g is constant."""
        return torch.zeros_like(x)

    def prox(self, v: Images, step: OneOrEach) -> Images:
        """The projection: y where there is a pixel, v elsewhere, for every step."""
        return torch.where(self.operator.mask > 0, self.y, v)

    def hessian(self, v: Images) -> Images:
        """Zero: within the constraint g is constant."""
        return torch.zeros_like(v)

    def project_tangent(self, v: Images) -> Images:
        """v on the pixels that may move, zero on the others."""
        return (1 - self.operator.mask) * v

    def metric(self) -> None:
        """None: the projection has a closed form in the Euclidean metric alone."""

    def precondition(self, r: Images, c: Factor, weights: Multiplier | None = None) -> Images:
        """r / c, (b, c, h, w). The weights are not used: see `metric`."""
        return r / c

    def select(self, index: Index) -> HardConstraint:
        """The data term of the images `index` of the batch."""
        return HardConstraint(self.operator.select(index), self.y[index])
