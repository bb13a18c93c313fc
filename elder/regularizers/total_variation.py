"""Total variation with rounded corners: the classical explicit regularizer."""

from __future__ import annotations

import math

import torch
from torch import nn

from elder.operators.differences import gradient, gradient_adjoint
from elder.regularizers.base import Energy
from elder.shapes import Images, OneOrEach, PerImage


class SmoothedTotalVariation(Energy):
    """h(x) = Σᵢ (√(‖(∇x)ᵢ‖² + ε²) − ε), with ∇h = ∇ᵀ(∇x / √(‖∇x‖² + ε²)); ε > 0 is learned, as its logarithm.

    Rudin, Osher & Fatemi 1992, with a continuous gradient: convex, and within ε an image pixel of total variation.
    ∇ takes forward differences, zero at the far border; the norm is over both directions, color by color. σ has no
    part. channels: any number is treated alike. `elder.solvers.primal_dual.reconstruct_tv` minimizes the sharp one.
    Raises `ValueError` for epsilon <= 0.
    """

    def __init__(self, channels: int = 1, epsilon: float = 0.01) -> None:
        super().__init__()
        if epsilon <= 0:
            raise ValueError(f"total_variation needs epsilon > 0; got {epsilon}")
        self.channels = channels
        self.log_epsilon = nn.Parameter(torch.tensor(math.log(epsilon)))

    def weak_convexity(self, sigma: float) -> float:
        """0: convex."""
        return 0.0

    def value(self, x: Images, sigma: OneOrEach) -> PerImage:
        """Σ (√(‖∇x‖² + ε²) − ε), (b,) in float64."""
        return self.value_and_grad(x, sigma)[0]

    def value_and_grad(self, x: Images, sigma: OneOrEach) -> tuple[PerImage, Images]:
        """h(x, σ), (b,) in float64, and ∇h(x, σ), (b, c, h, w)."""
        epsilon = self.log_epsilon.exp()
        d = gradient(x)
        length = (d.square().sum(0) + epsilon**2).sqrt()
        return (length - epsilon).flatten(1).sum(1, dtype=torch.float64), gradient_adjoint(d / length)
