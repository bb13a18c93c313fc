"""What a reconstruction solves: an equation of data and regularizer, or the energy behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from elder.backend import autocast, chunks
from elder.fidelity import Fidelity
from elder.regularizers.base import Energy, Regularizer
from elder.shapes import Images, Index, PerImage, Scalar
from elder.spectral import fourier_multiplier
from elder.tensors import dot, per_image


@dataclass(frozen=True, eq=False)
class Equilibrium(ABC):
    """The fixed-point equation ∇g(x; y) + λ R_θ(x, σ) = 0: for an energy, R = ∇h, and this is stationarity.

    Its solutions are the fixed points of x ↦ prox_{τg}(x − τλR(x)), for every τ > 0. It is an `Objective` if there is
    an energy, else an `Equation`.

    lambda_reg: λ >= 0, a scalar. sigma: σ, a scalar. precision: of the evaluations of R, see `elder.backend`; all else
    has the precision of x. metric: the weights W(ω), (h, w), of the metric in which solvers measure steps. If `None`,
    steps are measured in the Euclidean norm. The metric affects the speed of convergence, not the solutions.
    """

    # Whether R' is symmetric for every x, as the Hessian of an energy is.
    symmetric: ClassVar[bool]

    fidelity: Fidelity
    regularizer: Regularizer
    lambda_reg: Scalar
    sigma: Scalar
    precision: str = "float32"
    metric: Float[Tensor, "h w"] | None = None

    @property
    @abstractmethod
    def objective(self) -> Objective | None:
        """This equation with its energy, which solvers can descend; `None` if R is the gradient of no energy."""

    def reg_grad(self, x: Images) -> Images:
        """λR(x), (b, c, h, w): one network evaluation; differentiable when the caller records."""
        with autocast(self.precision, x.device):
            gradient = torch.cat([self.regularizer.gradient(part, self.sigma) for part in chunks(x)])
        return self.lambda_reg * gradient.to(x.dtype)

    def grad(self, x: Images) -> Images:
        """∇g(x) + λR(x), (b, c, h, w): zero at a solution."""
        return self.fidelity.grad(x) + self.reg_grad(x)

    def step(self, x: Images, reg_grad: Images, tau: PerImage) -> Images:
        """The proximal step argmin_z g(z) + ⟨λR(x), z⟩ + ‖z − x‖²_W / (2τ) from x, (b, c, h, w).

        reg_grad: λR(x), (b, c, h, w). tau: τ > 0, (b,). In the Euclidean norm this is prox_{τg}(x − τλR(x)). In another
        metric it is x − (AᵀA + W/τ)⁻¹(∇g(x) + λR(x)) (Chouzenoux, Pesquet & Repetti 2014).
        """
        t = per_image(tau, x)
        if self.metric is None:
            return self.fidelity.prox(x - t * reg_grad, tau)
        return x - self.fidelity.precondition(self.fidelity.grad(x) + reg_grad, 1 / t, self.metric)

    def square(self, v: Images) -> PerImage:
        """‖v‖²_W = ⟨v, Wv⟩ in the metric, (b,) in float64."""
        return dot(v, v if self.metric is None else fourier_multiplier(v, self.metric))

    def with_natural_metric(self) -> Self:
        """The same equation in the metric of natural images, if the data term has a closed form for it."""
        return replace(self, metric=self.fidelity.metric())

    def equation(self, precision: str) -> Equation:
        """The same equation without the value of an energy, its regularizer evaluated in `precision`."""
        return Equation(self.fidelity, self.regularizer, self.lambda_reg, self.sigma, precision, self.metric)

    def select(self, index: Index) -> Self:
        """The equation of the images `index` of the batch alone."""
        return replace(self, fidelity=self.fidelity.select(index))


@dataclass(frozen=True, eq=False)
class Equation(Equilibrium):
    """An equilibrium of which the equation is all that there is: no value to descend.

    For an implicit regularizer, R(x) = x − N(x) stands where the gradient of an energy would.
    """

    symmetric: ClassVar[bool] = False

    @property
    def objective(self) -> None:
        """None: there is no energy."""


@dataclass(frozen=True, eq=False)
class Objective(Equilibrium):
    """f(x) = g(x; y) + λ h_θ(x, σ), whose critical points solve ∇g(x) + λ∇h(x) = 0."""

    symmetric: ClassVar[bool] = True

    regularizer: Energy

    @property
    def objective(self) -> Objective:
        """This objective."""
        return self

    def evaluate(self, x: Images) -> tuple[PerImage, Images]:
        """f(x), (b,) in float64, and λ∇h(x), (b, c, h, w): one network evaluation."""
        with autocast(self.precision, x.device):
            pairs = [self.regularizer.value_and_grad(part, self.sigma) for part in chunks(x)]
        value, gradient = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
        return self.fidelity.value(x) + self.lambda_reg.double() * value, self.lambda_reg * gradient.to(x.dtype)

    def value(self, x: Images) -> PerImage:
        """f(x), (b,) in float64."""
        with autocast(self.precision, x.device):
            value = torch.cat([self.regularizer.value(part, self.sigma) for part in chunks(x)])
        return self.fidelity.value(x) + self.lambda_reg.double() * value


def make_objective(fidelity: Fidelity, regularizer: Regularizer, lambda_reg: Scalar, sigma: Scalar) -> Equilibrium:
    """An `Objective` if the regularizer is an energy, else an `Equation`, which has no value to descend.

    lambda_reg: λ >= 0, a scalar. sigma: σ, a scalar in the units of the images.
    """
    if isinstance(regularizer, Energy):
        return Objective(fidelity, regularizer, lambda_reg, sigma)
    return Equation(fidelity, regularizer, lambda_reg, sigma)
