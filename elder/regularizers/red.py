"""The potential of regularization by denoising (RED), with its true gradient."""

from __future__ import annotations

from elder.networks.base import Network
from elder.regularizers.base import Energy
from elder.shapes import Images, OneOrEach, PerImage
from elder.tensors import dot


class REDPotential(Energy):
    """h(x, σ) = ½⟨x, x − N_θ(x, σ)⟩, with ∇h = ½(2x − N_θ(x, σ) − Jᵀx).

    Romano, Elad & Milanfar 2017, whose formula ∇h = x − N(x) holds only for a homogeneous N with a symmetric Jacobian
    (Reehorst & Schniter 2019); this gradient is exact for every N. h may be unbounded below for an arbitrary network.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def value(self, x: Images, sigma: OneOrEach) -> PerImage:
        """½⟨x, x − N(x, σ)⟩, (b,) in float64."""
        return dot(x, x - self.network(x, sigma)) / 2

    def value_and_grad(self, x: Images, sigma: OneOrEach) -> tuple[PerImage, Images]:
        """h(x, σ), (b,) in float64, and ∇h(x, σ), (b, c, h, w), from one evaluation of the network."""
        output, pullback = self.network.linearize(x, sigma)
        r = x - output
        return dot(x, r) / 2, (r + x - pullback(x)) / 2
