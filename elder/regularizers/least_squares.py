"""The least-squares residual of a denoising network (gradient-step denoiser)."""

from __future__ import annotations

from elder.networks.base import Network
from elder.regularizers.base import Energy
from elder.shapes import Images, OneOrEach, PerImage
from elder.tensors import dot


class LeastSquaresResidual(Energy):
    """h(x, σ) = ½‖x − N_θ(x, σ)‖², with ∇h = r − Jᵀr and r = x − N_θ(x, σ).

    Cohen et al. 2021; Hurault et al. 2022; ELDER (Zou et al. 2023). h >= 0, so that every f = g + λh is bounded below.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def value(self, x: Images, sigma: OneOrEach) -> PerImage:
        """½‖x − N(x, σ)‖², (b,) in float64."""
        r = x - self.network(x, sigma)
        return dot(r, r) / 2

    def value_and_grad(self, x: Images, sigma: OneOrEach) -> tuple[PerImage, Images]:
        """h(x, σ), (b,) in float64, and ∇h(x, σ), (b, c, h, w), from one evaluation of the network."""
        output, pullback = self.network.linearize(x, sigma)
        r = x - output
        return dot(r, r) / 2, r - pullback(r)
