"""Data terms: an operator bound to a measurement."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from elder import metric
from elder.operators.base import Operator
from elder.operators.masking import Masking
from elder.tensors import dot, per_image


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """g(x) = ½‖A x − y‖², of each image of a batch; made by `LeastSquares.of`."""

    operator: Operator
    y: Tensor
    back_projection: Tensor  # Aᵀy, (b, c, h, w)

    @classmethod
    def of(cls, operator: Operator, y: Tensor) -> LeastSquares:
        """The data term of the measurement y. Raises `ValueError` when y is not finite or does not fit."""
        operator.check(y)
        _check_finite(y)
        return cls(operator, y, operator.AT(y))

    def value(self, x: Tensor) -> Tensor:
        """½‖A x − y‖², (b, c, h, w) -> (b,) in float64."""
        residual = self.operator.A(x) - self.y
        return dot(residual, residual) / 2

    def grad(self, x: Tensor) -> Tensor:
        """AᵀA x − Aᵀy, (b, c, h, w)."""
        return self.operator.normal(x) - self.back_projection

    def prox(self, v: Tensor, step: Tensor) -> Tensor:
        """argmin_z ½‖z − v‖² + τ g(z) = (I + τ AᵀA)⁻¹ (v + τ Aᵀy); step τ: (b,) or scalar."""
        tau = per_image(step, v)
        return self.operator.shifted_solve(v + tau * self.back_projection, tau)

    def hessian(self, v: Tensor) -> Tensor:
        """∇²g v = AᵀA v."""
        return self.operator.normal(v)

    def free(self, v: Tensor) -> Tensor:
        """v: every direction is free."""
        return v

    def metric(self) -> Tensor | None:
        """W(ω) of the metric of natural pictures where (AᵀA + cW)⁻¹ has a closed form, else None."""
        size = (self.back_projection.shape[-2], self.back_projection.shape[-1])
        return metric.natural(size, self.back_projection) if self.operator.spectral else None

    def precondition(self, r: Tensor, c: Tensor, weights: Tensor | None = None) -> Tensor:
        """(AᵀA + cW)⁻¹ r with the weights W(ω) of a metric, or I in their place; c: (b, 1, 1, 1)."""
        if weights is not None:
            return self.operator.weighted_solve(r, c * weights)
        return self.operator.shifted_solve(r / c, 1 / c)

    def select(self, index: Tensor) -> LeastSquares:
        """The data term of the images `index` of the batch alone."""
        return LeastSquares(self.operator.select(index), self.y[index], self.back_projection[index])


@dataclass(frozen=True, eq=False)
class HardConstraint:
    """g(x) = 0 where M x = y, infinite elsewhere: measured pixels are kept as they are. Made by `HardConstraint.of`.

    For a mask M alone. Every iterate of a proximal method from a start that satisfies M x = y satisfies it, and so does
    every affine combination of such points; `value` is that of feasible points, which is zero.
    """

    operator: Masking
    y: Tensor

    @classmethod
    def of(cls, operator: Masking, y: Tensor) -> HardConstraint:
        """The constraint of the measurement y. Raises `ValueError` when y is not finite or does not fit."""
        operator.check(y)
        _check_finite(y)
        return cls(operator, y)

    def value(self, x: Tensor) -> Tensor:
        """Zero, (b, c, h, w) -> (b,) in float64."""
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def grad(self, x: Tensor) -> Tensor:
        """Zero: within the constraint g is constant."""
        return torch.zeros_like(x)

    def prox(self, v: Tensor, step: Tensor) -> Tensor:
        """The projection: y where there is a pixel, v elsewhere, for every step."""
        return torch.where(self.operator.mask > 0, self.y, v)

    def hessian(self, v: Tensor) -> Tensor:
        return torch.zeros_like(v)

    def free(self, v: Tensor) -> Tensor:
        """v on the pixels that may move, zero on the others."""
        return (1 - self.operator.mask) * v

    def metric(self) -> None:
        """None: the projection has a closed form in the Euclidean metric alone."""

    def precondition(self, r: Tensor, c: Tensor, weights: Tensor | None = None) -> Tensor:
        return r / c

    def select(self, index: Tensor) -> HardConstraint:
        return HardConstraint(self.operator.select(index), self.y[index])


Fidelity = LeastSquares | HardConstraint


def _check_finite(y: Tensor) -> None:
    if not bool(y.isfinite().all()):
        raise ValueError("the measurement holds NaN or infinite values: repair or mask them first")
