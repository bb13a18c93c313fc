"""What a data term gives to solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from jaxtyping import Float
from torch import Tensor

from elder.shapes import Factor, Images, Index, Measurement, Multiplier, OneOrEach, PerImage


class Fidelity(ABC):
    """A data term g(x; y), convex in x: an operator bound to a measurement of each image of a batch."""

    # Whether g is the indicator of a set of pictures. If so, λ does not affect the minimizer.
    constrains: ClassVar[bool] = False

    @abstractmethod
    def value(self, x: Images) -> PerImage:
        """g(x), (b, c, h, w) -> (b,) in float64."""

    @abstractmethod
    def grad(self, x: Images) -> Images:
        """∇g(x), (b, c, h, w)."""

    @abstractmethod
    def prox(self, v: Images, step: OneOrEach) -> Images:
        """argmin_z ½‖z − v‖² + τ g(z), (b, c, h, w); step τ > 0: (b,) or scalar."""

    @abstractmethod
    def hessian(self, v: Images) -> Images:
        """∇²g v, (b, c, h, w)."""

    @abstractmethod
    def project_tangent(self, v: Images) -> Images:
        """The projection of v onto the feasible directions, (b, c, h, w)."""

    @abstractmethod
    def metric(self) -> Float[Tensor, "h w"] | None:
        """W(ω) of the metric of natural pictures where (∇²g + cW)⁻¹ has a closed form, else `None`."""

    @abstractmethod
    def precondition(self, r: Images, c: Factor, weights: Multiplier | None = None) -> Images:
        """(∇²g + cW)⁻¹ r in the feasible directions, (b, c, h, w); c > 0: (b, 1, 1, 1).

        weights: W(ω) of a metric; if `None`, the identity takes its place.
        """

    @abstractmethod
    def select(self, index: Index) -> Self:
        """The data term of the images `index` of the batch alone."""


def check_finite(y: Measurement) -> None:
    """Raise `ValueError` if the measurement holds NaN or infinite values."""
    if not bool(y.isfinite().all()):
        raise ValueError("the measurement holds NaN or infinite values: repair or mask them first")
