"""Data terms: an operator bound to a measurement."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from elder.operators.base import Operator
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
        if not bool(y.isfinite().all()):
            raise ValueError("the measurement holds NaN or infinite values: repair or mask them first")
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

    def select(self, index: Tensor) -> LeastSquares:
        """The data term of the images `index` of the batch alone."""
        return LeastSquares(self.operator.select(index), self.y[index], self.back_projection[index])
