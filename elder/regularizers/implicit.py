"""The residual of a denoising network, followed as if it were a gradient."""

from __future__ import annotations

from elder.networks.base import Network
from elder.regularizers.base import Regularizer
from elder.shapes import Images, OneOrEach


class ImplicitResidual(Regularizer):
    """R(x, σ) = x − N_θ(x, σ): the direction of plug-and-play and DEQ methods (Gilton et al. 2021). Not an energy.

    R is the gradient of no function unless the Jacobian of N is symmetric, which a network's is not. So there is no
    value to descend, no line search and no safeguard, and a solve may cycle or diverge. The counterpart, over the same
    network, that explicit regularizers are compared with.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def gradient(self, x: Images, sigma: OneOrEach) -> Images:
        """x − N(x, σ), (b, c, h, w)."""
        return x - self.network(x, sigma)

    def denoise(self, x: Images, sigma: OneOrEach) -> Images:
        """N(x, σ), (b, c, h, w)."""
        return self.network(x, sigma)
