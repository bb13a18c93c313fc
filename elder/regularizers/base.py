"""What a regularizer is: a vector field, which for an explicit one is the gradient of an energy."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from elder.shapes import Images, OneOrEach, PerImage


class Regularizer(nn.Module, ABC):
    """A vector field R_θ(x, σ) that a reconstruction follows, conditioned on the noise level σ."""

    @abstractmethod
    def gradient(self, x: Images, sigma: OneOrEach) -> Images:
        """R_θ(x, σ), (b, c, h, w): ∇h for an energy, x − N(x) for an implicit regularizer.

        Differentiable if the caller records. sigma: (b,) or scalar, in the units of x.
        """

    def denoise(self, x: Images, sigma: OneOrEach) -> Images:
        """D(x, σ) = x − ∇h(x, σ): what pre-training fits to clean images."""
        return x - self.gradient(x, sigma)

    def weak_convexity(self, sigma: float) -> float | None:
        """ρ >= 0 such that R(·, σ) + ρI is monotone; `None` if no bound is known, as for a network.

        For an energy this says that h(·, σ) + ρ/2 ‖·‖² is convex.
        """
        return None


class Energy(Regularizer):
    """An explicit regularizer h_θ(x, σ): one number an image, and its true gradient.

    A subclass must give `value`. It may also give `value_and_grad`, where one evaluation yields both at less cost
    than differentiating the value; tests hold the two to each other.
    """

    @abstractmethod
    def value(self, x: Images, sigma: OneOrEach) -> PerImage:
        """h(x, σ), (b, c, h, w) -> (b,) in float64."""

    def value_and_grad(self, x: Images, sigma: OneOrEach) -> tuple[PerImage, Images]:
        """h(x, σ), (b,), and ∇h(x, σ), (b, c, h, w), by automatic differentiation of `value`."""
        record = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            value = self.value(x, sigma)
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=record)
        return (value if record else value.detach()), gradient

    def grad(self, x: Images, sigma: OneOrEach) -> Images:
        """∇h(x, σ), (b, c, h, w)."""
        return self.value_and_grad(x, sigma)[1]

    def gradient(self, x: Images, sigma: OneOrEach) -> Images:
        """∇h(x, σ), (b, c, h, w)."""
        return self.grad(x, sigma)
