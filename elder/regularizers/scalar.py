"""A network summed to a number."""

from __future__ import annotations

import torch

from elder.networks.base import Network
from elder.regularizers.base import Energy
from elder.shapes import Images, OneOrEach, PerImage


class ScalarPotential(Energy):
    """h(x, σ) = Σᵢ (x − N_θ(x, σ))ᵢ: the network's last layer summed, with ∇h = 1 − Jᵀ1.

    Energy-based models (Salimans & Ho 2021; Zach et al. 2023). h may be unbounded below for an arbitrary network.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def value(self, x: Images, sigma: OneOrEach) -> PerImage:
        """Σ (x − N(x, σ)), (b,) in float64."""
        return (x - self.network(x, sigma)).flatten(1).sum(1, dtype=torch.float64)

    def value_and_grad(self, x: Images, sigma: OneOrEach) -> tuple[PerImage, Images]:
        """h(x, σ), (b,) in float64, and ∇h(x, σ), (b, c, h, w), from one evaluation of the network."""
        output, pullback = self.network.linearize(x, sigma)
        ones = torch.ones_like(x)
        return (x - output).flatten(1).sum(1, dtype=torch.float64), ones - pullback(ones)
