"""What a reconstruction solves: an equation of data and regulariser, and where there is one, the energy behind it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from elder.compute import rounded
from elder.fidelity import Fidelity
from elder.regularizers.base import Energy, Regularizer


@dataclass(frozen=True, eq=False)
class Equilibrium:
    """∇g(x; y) + λ R_θ(x, σ) = 0, with R the regulariser's direction; weight λ >= 0 and sigma σ are scalars.

    Its solutions are the fixed points of x ↦ prox_{τg}(x − τλR(x)), for every τ > 0. precision: of the evaluations of
    R, see `elder.compute`; everything else is in that of x.
    """

    fidelity: Fidelity
    regularizer: Regularizer
    weight: Tensor
    sigma: Tensor
    precision: str = "float32"

    def slope(self, x: Tensor) -> Tensor:
        """λR(x), (b, c, h, w): one network evaluation; differentiable when the caller records."""
        with rounded(self.precision, x.device):
            direction = self.regularizer.direction(x, self.sigma)
        return self.weight * direction.to(x.dtype)

    def grad(self, x: Tensor) -> Tensor:
        """∇g(x) + λR(x), (b, c, h, w): zero at a solution."""
        return self.fidelity.grad(x) + self.slope(x)

    def select(self, index: Tensor) -> Self:
        """The equation of the images `index` of the batch alone."""
        return replace(self, fidelity=self.fidelity.select(index))


@dataclass(frozen=True, eq=False)
class Objective(Equilibrium):
    """f(x) = g(x; y) + λ h_θ(x, σ), whose critical points solve ∇g(x) + λ∇h(x) = 0."""

    regularizer: Energy

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x), (b,) in float64, and λ∇h(x), (b, c, h, w): one network evaluation."""
        with rounded(self.precision, x.device):
            value, gradient = self.regularizer.value_and_grad(x, self.sigma)
        return self.fidelity.value(x) + self.weight.double() * value, self.weight * gradient.to(x.dtype)

    def value(self, x: Tensor) -> Tensor:
        """f(x), (b,) in float64."""
        with rounded(self.precision, x.device):
            value = self.regularizer.value(x, self.sigma)
        return self.fidelity.value(x) + self.weight.double() * value


def pose(fidelity: Fidelity, regularizer: Regularizer, weight: Tensor, sigma: Tensor) -> Equilibrium:
    """An `Objective` where the regulariser is an energy, else an `Equilibrium`, which has no value to descend."""
    kind = Objective if isinstance(regularizer, Energy) else Equilibrium
    return kind(fidelity, regularizer, weight, sigma)  # pyright: ignore[reportArgumentType]
