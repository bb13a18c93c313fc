"""The data term of Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from elder import spectral
from elder.fidelity.base import Fidelity, check_finite
from elder.operators.base import Operator
from elder.shapes import Factor, Images, Index, Measurement, Multiplier, OneOrEach, PerImage
from elder.tensors import dot, per_image


@dataclass(frozen=True, eq=False)
class LeastSquares(Fidelity):
    """g(x) = ½‖A x − y‖², of each image of a batch; made by `LeastSquares.of`."""

    operator: Operator
    y: Measurement
    back_projection: Images  # Aᵀy

    @classmethod
    def of(cls, operator: Operator, y: Measurement) -> LeastSquares:
        """The data term of the measurement y. Raises `ValueError` when y is not finite or does not fit."""
        operator.check(y)
        check_finite(y)
        return cls(operator, y, operator.AT(y))

    def value(self, x: Images) -> PerImage:
        """½‖A x − y‖², (b, c, h, w) -> (b,) in float64."""
        residual = self.operator.A(x) - self.y
        return dot(residual, residual) / 2

    def grad(self, x: Images) -> Images:
        """AᵀA x − Aᵀy, (b, c, h, w)."""
        return self.operator.normal(x) - self.back_projection

    def prox(self, v: Images, step: OneOrEach) -> Images:
        """argmin_z ½‖z − v‖² + τ g(z) = (I + τ AᵀA)⁻¹ (v + τ Aᵀy); step τ: (b,) or scalar."""
        tau = per_image(step, v)
        return self.operator.prox_solve(v + tau * self.back_projection, tau)

    def hessian(self, v: Images) -> Images:
        """∇²g v = AᵀA v."""
        return self.operator.normal(v)

    def project_tangent(self, v: Images) -> Images:
        """v: every direction is free."""
        return v

    def metric(self) -> Float[Tensor, "h w"] | None:
        """W(ω) of the metric of natural pictures where (AᵀA + cW)⁻¹ has a closed form, else None."""
        size = (self.back_projection.shape[-2], self.back_projection.shape[-1])
        return spectral.natural_image_weights(size, self.back_projection) if self.operator.spectral else None

    def precondition(self, r: Images, c: Factor, weights: Multiplier | None = None) -> Images:
        """(AᵀA + cW)⁻¹ r with the weights W(ω) of a metric, or I in their place; c: (b, 1, 1, 1)."""
        if weights is not None:
            return self.operator.weighted_solve(r, c * weights)
        return self.operator.prox_solve(r / c, 1 / c)

    def select(self, index: Index) -> LeastSquares:
        """The data term of the images `index` of the batch alone."""
        return LeastSquares(self.operator.select(index), self.y[index], self.back_projection[index])
