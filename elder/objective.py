"""The energy that a reconstruction minimises."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from elder.fidelity import Fidelity
from elder.regularizers.base import Energy


@dataclass(frozen=True, eq=False)
class Objective:
    """f(x) = g(x; y) + λ h_θ(x, σ); weight λ >= 0 and sigma σ are scalars."""

    fidelity: Fidelity
    regularizer: Energy
    weight: Tensor
    sigma: Tensor

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x), (b,) in float64, and λ∇h(x), (b, c, h, w): one network evaluation."""
        value, gradient = self.regularizer.value_and_grad(x, self.sigma)
        return self.fidelity.value(x) + self.weight.double() * value, self.weight * gradient

    def value(self, x: Tensor) -> Tensor:
        """f(x), (b,) in float64."""
        return self.fidelity.value(x) + self.weight.double() * self.regularizer.value(x, self.sigma)

    def grad(self, x: Tensor) -> Tensor:
        """∇f(x) = ∇g(x) + λ∇h(x), (b, c, h, w); zero at a fixed point of the proximal gradient step."""
        return self.fidelity.grad(x) + self.weight * self.regularizer.grad(x, self.sigma)

    def select(self, index: Tensor) -> Objective:
        """The objective of the images `index` of the batch alone."""
        return replace(self, fidelity=self.fidelity.select(index))
