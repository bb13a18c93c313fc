"""CRR and WCRR: ridge regularizers with a chain of convolutions and learned linear splines."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from elder.networks.chain import Chain, value_and_grad
from elder.networks.spline import Slopes, lookup
from elder.regularizers.base import Energy
from elder.shapes import Features, Images, OneOrEach, PerImage

# Noise levels at which the scales and the strength are learned: 2⁻⁹, 2⁻⁸, ..., 2⁻¹.
LOWEST, LEVELS = -9.0, 9
# Distance of the knots of the spline, in units of the response to noise at the start of training.
SPACING = 0.25
MOST_CELLS = 4096


class SplineRidge(Energy):
    """h(x, σ) = Σ_c Σᵢ Φ(α_c (W x)_ci) / α_c², with a chain of convolutions W of norm 1 at most.

    The derivative φ of Φ is an odd linear spline, the same for all filters. The slopes of φ, which a subclass gives,
    lie in [−ρ, L], so the eigenvalues of ∇²h lie in [−ρ, L] for any weights. The noise level sets the scale of each
    filter, α_c(σ) = a_c(σ)/σ, and the strength μ(σ), of which a subclass makes the slopes. Both log a_c and log μ are
    linear splines in log σ.

    filters: the features after each convolution, see `Chain`; the last ones are penalized. kernel_size: of each
    convolution, odd. cells: of the spline on either side of 0.
    Raises `ValueError` for a number of cells out of range, and what `Chain` raises.
    """

    def __init__(
        self, channels: int = 1, filters: Sequence[int] = (4, 8, 60), kernel_size: int = 5, cells: int = 40
    ) -> None:
        super().__init__()
        if not 1 <= cells <= MOST_CELLS:
            raise ValueError(f"a linear spline takes 1 to {MOST_CELLS} cells; got {cells}")
        self.channels = channels
        self.chain = Chain(channels, filters, kernel_size)
        # The filters share a norm of 1, so noise of level σ gives a response of about σ/√filters each.
        self.log_scales = nn.Parameter(torch.full((LEVELS, filters[-1]), math.log(filters[-1]) / 2))
        self.log_strengths = nn.Parameter(torch.zeros(LEVELS, 1))
        # Near t/√(1 + t²): a square below the noise, an absolute value above.
        middles = [SPACING * (cell + 0.5) for cell in range(cells)]
        self.rising = nn.Parameter(torch.tensor([[_logit((1 + t**2) ** -1.5) for t in middles]]))

    def value(self, x: Images, sigma: OneOrEach) -> PerImage:
        """h(x, σ), (b,) in float64."""
        return self.value_and_grad(x, sigma)[0]

    def value_and_grad(self, x: Images, sigma: OneOrEach) -> tuple[PerImage, Images]:
        """h(x, σ), (b,) in float64, and ∇h(x, σ) = Wᵀ(φ(α W x)/α), (b, c, h, w)."""
        kernels, level = self.chain.scaled(), _level(sigma, x)
        hats = _interpolation(level)
        alpha = ((hats @ self.log_scales).exp() / level).unsqueeze(2).unsqueeze(3)
        slopes = self.slopes((hats @ self.log_strengths).exp())

        def profile(u: Features, images: slice) -> tuple[PerImage, Features]:
            scale, own = (each[images] if len(each) > 1 else each for each in (alpha, slopes))
            potential, phi = lookup(scale * u, own, SPACING)
            value = potential.flatten(2).sum(2, dtype=torch.float64) / scale.flatten(1).double().square()
            return value.sum(1), phi / scale

        return value_and_grad(kernels, x, profile)

    @abstractmethod
    def slopes(self, strength: Float[Tensor, "#b 1"]) -> Slopes:
        """The slopes of φ from 0 outward for the strength μ of each image, or for that of all."""

    @torch.no_grad()
    def weak_convexity(self, sigma: float) -> float:
        """ρ such that h(·, σ) + ρ/2 ‖·‖² is convex: the steepest descent of φ, since ‖W‖ <= 1."""
        return max(0.0, -float(self._slopes_at(sigma).min()))

    @torch.no_grad()
    def lipschitz(self, sigma: float) -> float:
        """A Lipschitz constant of ∇h(·, σ): the largest slope of φ in magnitude, since ‖W‖ <= 1."""
        return float(self._slopes_at(sigma).abs().max())

    def _slopes_at(self, sigma: float) -> Slopes:
        level = _level(torch.tensor(sigma), self.log_strengths)
        return self.slopes((_interpolation(level) @ self.log_strengths).exp())


class ConvexSplineRidge(SplineRidge):
    """CRR: φ = μ φ₊, where φ₊ has slopes between 0 and 1. So h is convex, with a Lipschitz constant of μ(σ) at most.

    After Goujon et al. 2023, with slopes of a sigmoid function in place of clipped ones.
    """

    def slopes(self, strength: Float[Tensor, "#b 1"]) -> Slopes:
        """Those of μ φ₊, in (0, μ)."""
        return strength * self.rising.sigmoid()


class WeaklyConvexSplineRidge(SplineRidge):
    """WCRR: φ = μ φ₊ − φ₋, where both have slopes between 0 and 1: 1-weakly convex, and edges may cost little.

    λ < 1 keeps x ↦ ½‖x − y‖² + λh(x) convex. After Goujon et al. 2024.
    """

    def __init__(
        self, channels: int = 1, filters: Sequence[int] = (4, 8, 60), kernel_size: int = 5, cells: int = 40
    ) -> None:
        super().__init__(channels, filters, kernel_size, cells)
        self.falling = nn.Parameter(torch.full((1, cells), -3.0))

    def slopes(self, strength: Float[Tensor, "#b 1"]) -> Slopes:
        """Those of μ φ₊ − φ₋, in (−1, μ)."""
        return strength * self.rising.sigmoid() - self.falling.sigmoid()


def _level(sigma: OneOrEach, x: Tensor) -> Float[Tensor, "#b 1"]:
    """σ as a column; a noise level of zero has no logarithm."""
    return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1).clamp(min=1e-4)


def _interpolation(level: Float[Tensor, "#b 1"]) -> Float[Tensor, "#b levels"]:
    """The weights of the values at the noise levels 2⁻⁹ to 2⁻¹, linear in log σ between, and constant beyond."""
    place = (level.log2() - LOWEST).clamp(0, LEVELS - 1)
    return (1 - (place - torch.arange(LEVELS, dtype=level.dtype, device=level.device)).abs()).clamp(min=0)


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
