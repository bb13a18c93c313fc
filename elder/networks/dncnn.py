"""DnCNN (Zhang et al. 2017) without batch normalization, conditioned on the noise level."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import cast

from torch import nn
from torch.nn import functional as F

from elder.networks import activations
from elder.networks.base import DEEPEST, WIDEST, Network, Pullback, channels_last, scaled_init, with_noise_map
from elder.shapes import Features, Images, OneOrEach


class DnCNN(Network):
    """N(x, σ) = x − f(x, σ): `depth` 3x3 convolutions of `width` channels with an activation between.

    activation: elu or softplus, see `elder.networks.activations`; in place of ReLU, so that an energy built on N has a
    continuous gradient. σ enters as a constant channel (Zhang et al. 2018, FFDNet). Any height and width.
    Raises `ValueError` for numbers out of range, or an unknown activation.
    """

    def __init__(self, channels: int = 1, width: int = 32, depth: int = 6, activation: str = "elu") -> None:
        super().__init__()
        if not (1 <= channels <= WIDEST and 1 <= width <= WIDEST and 2 <= depth <= DEEPEST):
            raise ValueError(
                f"DnCNN needs channels, width >= 1 and depth >= 2, up to {WIDEST} and {DEEPEST}; "
                f"got {channels}, {width}, {depth}"
            )
        self.channels = channels
        self.activation = activations.named(activation)
        widths = [channels + 1, *[width] * (depth - 1), channels]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(widths))
        for conv in self.layers[:-1]:
            scaled_init(conv, gain=2**0.5)
        scaled_init(self.layers[-1], gain=0.1)
        channels_last(self)

    @property
    def layers(self) -> list[nn.Conv2d]:
        """The convolutions, from first to last."""
        return cast("list[nn.Conv2d]", list(self.convs))

    def forward(self, x: Images, sigma: OneOrEach) -> Images:
        """N(x, σ) = x − F(x, σ), (b, c, h, w), F the convolutions."""
        return x - self._activations(x, sigma)[-1]

    def linearize(self, x: Images, sigma: OneOrEach) -> tuple[Images, Pullback]:
        """N(x, σ), and v -> Jᵀv; see `Network.linearize`."""
        *hidden, f = self._activations(x, sigma)
        return x - f, partial(self._pullback, hidden)

    def _pullback(self, hidden: list[Features], v: Images) -> Images:
        u = v
        for conv, a in zip(reversed(self.layers[1:]), reversed(hidden), strict=True):
            u = self.activation.pullback(F.conv_transpose2d(u, conv.weight, padding=1), a)
        # The noise map is a constant of the picture: its channel has no part in the Jacobian.
        return v - F.conv_transpose2d(u, self.layers[0].weight[:, : self.channels], padding=1)

    def _activations(self, x: Images, sigma: OneOrEach) -> list[Features]:
        self.check(x)
        u = with_noise_map(x, sigma)
        outputs: list[Features] = []
        for conv in self.layers[:-1]:
            u = self.activation.apply(conv(u))
            outputs.append(u)
        return [*outputs, self.layers[-1](u)]
