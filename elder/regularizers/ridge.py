"""Ridge regularizers: sums of learned profiles of learned filters, convex or weakly convex by construction."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from elder.networks import strips
from elder.networks.base import WIDEST, normal_init
from elder.regularizers.base import Energy
from elder.shapes import Anything, Features, Images, OneOrEach, PerImage

# Responses of the filters: (b, filters, pixels).
Responses = Float[Tensor, "b f n"]
LARGEST = 255  # knees, and the side of a filter


class Ridge(Energy):
    """h(x) = Σ_c Σᵢ ψ_c((w_c * x)ᵢ), with profiles ψ_c that a subclass gives.

    Filters have zero mean, zero padding at the border. The noise level sets the strength of the whole, (σ/0.1)^p with a
    learned p, 1 at the start; it is left out of the formulas here.

    filters: how many; filter_size: odd side of a filter; knees: how many scales s_k, from 1e-3 to 1 in equal ratios.
    Raises `ValueError` for a number out of range, or an even `filter_size`.
    """

    scales: Float[Tensor, "knees 1 1"]  # s_k

    def __init__(self, channels: int = 1, filters: int = 32, filter_size: int = 7, knees: int = 7) -> None:
        super().__init__()
        if min(channels, filters, knees) < 1 or filter_size < 3 or filter_size % 2 == 0:
            raise ValueError(
                "ridge needs channels, filters, knees >= 1 and an odd filter_size >= 3; "
                f"got {channels}, {filters}, {knees}, {filter_size}"
            )
        if max(channels, filters) > WIDEST or max(knees, filter_size) > LARGEST:
            raise ValueError(
                f"ridge takes channels, filters up to {WIDEST} and knees, filter_size up to {LARGEST}; "
                f"got {channels}, {filters}, {knees}, {filter_size}"
            )
        self.channels = channels
        scales = [10 ** (3 * k / max(1, knees - 1) - 3) for k in range(knees)]
        self.register_buffer("scales", torch.tensor(scales).view(-1, 1, 1))
        self.filters = nn.Parameter(torch.empty(filters, channels, filter_size, filter_size))
        normal_init(self.filters, std=1 / filter_size)
        # Near total variation: most of the weight on a knee well below the contrast of an edge.
        start = torch.full((knees, filters, 1), -4.0)
        start[knees // 3] = 1.0
        self.log_amplitudes = nn.Parameter(start)
        self.exponent = nn.Parameter(torch.tensor(1.0))

    def value(self, x: Images, sigma: OneOrEach) -> PerImage:
        """Σ ψ(w * x), (b,) in float64."""
        return self.value_and_grad(x, sigma)[0]

    def value_and_grad(self, x: Images, sigma: OneOrEach) -> tuple[PerImage, Images]:
        """h(x, σ), (b,) in float64, and ∇h(x, σ) = Wᵀψ′(Wx), (b, c, h, w)."""
        w = self.centered()
        reach = w.shape[-1] // 2

        def profile(u: Features, images: slice) -> tuple[PerImage, Features]:
            value, slope = self.profile(u.flatten(2))
            return value.flatten(1).sum(1, dtype=torch.float64), slope.view_as(u)

        value, gradient = strips.value_and_grad(F.pad(x, (reach,) * 4), w, profile)
        strength = self.strength(sigma, x)
        return strength.flatten().double() * value, strength * F.pad(gradient, (-reach,) * 4)

    def strength(self, sigma: OneOrEach, x: Anything) -> Float[Tensor, "#b 1 1 1"]:
        """(σ/0.1)^p, (b, 1, 1, 1) or (1, 1, 1, 1)."""
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
        # A noise level of zero has no logarithm, and so no gradient in p.
        return (level.clamp(min=1e-4) / 0.1) ** self.exponent

    def centered(self) -> Float[Tensor, "f c k k"]:
        """The filters less their mean: a constant picture costs nothing."""
        return self.filters - self.filters.mean((1, 2, 3), keepdim=True)

    @abstractmethod
    def profile(self, u: Responses) -> tuple[Responses, Responses]:
        """ψ(u) and ψ'(u), (b, filters, pixels) each."""

    def convex_profile(self, u: Responses) -> tuple[Responses, Responses]:
        """Σ_k a_ck s_k² (√(1 + (t/s_k)²) − 1), a_ck >= 0, at t = u, and its derivative.

        A non-negative combination of smoothed absolute values at fixed scales s_k: convex, with a Lipschitz derivative,
        and twice differentiable, for any weights.
        """
        value, slope = torch.zeros_like(u), torch.zeros_like(u)
        for s, a in zip(self.scales, F.softplus(self.log_amplitudes), strict=True):
            root = torch.sqrt(1 + (u / s) ** 2)
            value = value + a * s**2 * (root - 1)
            slope = slope + a * u / root
        return value, slope


class ConvexRidge(Ridge):
    """ψ_c(t) = Σ_k a_ck s_k² (√(1 + (t/s_k)²) − 1), a_ck >= 0, so that h is convex with a Lipschitz gradient.

    After Goujon et al. 2023, with smooth profiles in place of linear splines.
    """

    def profile(self, u: Responses) -> tuple[Responses, Responses]:
        """ψ(u) and ψ'(u), (b, filters, pixels) each."""
        return self.convex_profile(u)

    def weak_convexity(self, sigma: float) -> float:
        """0: convex."""
        return 0.0


class WeaklyConvexRidge(Ridge):
    """ψ_c(t) as for `ConvexRidge`, plus Σ_k b_ck ½ s_k² u²/(1 + u²), u = t/s_k, b_ck >= 0: edges cost a bounded amount.

    Each added term has a second derivative of at least −1/4, so h + ρ/2 ‖·‖² is convex for ρ = `weak_convexity(σ)`,
    whatever the weights: λρ < 1 keeps x ↦ ½‖x − y‖² + λh(x) convex. After Goujon et al. 2024.
    """

    def __init__(self, channels: int = 1, filters: int = 32, filter_size: int = 7, knees: int = 7) -> None:
        super().__init__(channels, filters, filter_size, knees)
        self.log_bumps = nn.Parameter(torch.full((knees, filters, 1), -2.0))

    def profile(self, u: Responses) -> tuple[Responses, Responses]:
        """ψ(u) and ψ′(u), of the shape of u; edges are bounded."""
        value, slope = self.convex_profile(u)
        for s, b in zip(self.scales, F.softplus(self.log_bumps), strict=True):
            square = (u / s) ** 2
            value = value + b * s**2 / 2 * square / (1 + square)
            slope = slope + b * u / (1 + square) ** 2
        return value, slope

    @torch.no_grad()
    def weak_convexity(self, sigma: float) -> float:
        """ρ such that h(·, σ) + ρ/2 ‖·‖² is convex: (σ/0.1)^p ¼ max_ω Σ_c β_c |ŵ_c(ω)|², with β_c = Σ_k b_ck.

        Zero padding is a restriction of the convolution on the plane, whose norm the transfer functions bound; they
        are sampled on a grid far finer than the filters, and the bound is raised by the grid's error.
        """
        w, grid = self.centered().double(), 64
        beta = F.softplus(self.log_bumps).double().sum(0).view(-1, 1, 1, 1)
        transfer = torch.fft.fft2(beta.sqrt() * w, s=(grid, grid)).flatten(2).permute(2, 0, 1)
        largest = float(torch.linalg.matrix_norm(transfer, ord=2).max())
        # A trigonometric polynomial of degree n, sampled at m points, exceeds its samples by at most 1/cos(πn/m).
        slack = torch.cos(torch.tensor(torch.pi * (w.shape[-1] // 2) / grid)) ** -2
        return float(self.strength(torch.tensor(sigma), w)) * (largest * float(slack)) ** 2 / 4
