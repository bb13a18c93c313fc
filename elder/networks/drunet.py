"""DRUNet (Zhang et al. 2021): a residual U-Net without biases, conditioned on the noise level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from elder.networks import activations
from elder.networks.base import WIDEST, Network, Pullback, channels_last, normal_init, scaled_init, with_noise_map
from elder.networks.layers import ResidualBlock, Stack, convolve, upsample
from elder.shapes import Features, Images, OneOrEach

SCALES = 4
MOST_BLOCKS = 32  # at each scale, of two layers


class DRUNet(Network):
    """N(x, σ) = x − u(x, σ): a U-Net u of four scales, `blocks` residual blocks (3x3, φ, 3x3) at each.

    activation φ: elu or softplus, see `elder.networks.activations`; in place of ReLU, so that an energy built on N has
    a continuous gradient. Images are extended to multiples of 8 by repeating their border, here and nowhere else.
    widths: channels of the four scales; the paper's network has 64, 128, 256, 512 and 4 blocks.
    Raises `ValueError` for numbers out of range, another number of widths, or an unknown activation.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (16, 32, 64, 128),
        blocks: int = 2,
        activation: str = "elu",
    ) -> None:
        super().__init__()
        if len(widths) != SCALES or min(channels, blocks, *widths) < 1:
            raise ValueError(f"DRUNet needs channels, blocks >= 1 and four widths; got {channels}, {blocks}, {widths}")
        if max(channels, *widths) > WIDEST or blocks > MOST_BLOCKS:
            raise ValueError(
                f"DRUNet takes channels, widths up to {WIDEST} and blocks up to {MOST_BLOCKS}; "
                f"got {channels}, {widths}, {blocks}"
            )
        self.channels = channels
        phi = activations.named(activation)
        pairs = list(pairwise(widths))
        self.head = nn.Conv2d(channels + 1, widths[0], 3, padding=1, bias=False)
        self.encoders = nn.ModuleList(Stack(w, blocks, phi) for w in widths[:-1])
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2, bias=False) for a, b in pairs)
        self.body = Stack(widths[-1], blocks, phi)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2, bias=False) for a, b in pairs)
        self.decoders = nn.ModuleList(Stack(w, blocks, phi) for w in widths[:-1])
        self.tail = nn.Conv2d(widths[0], channels, 3, padding=1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                scaled_init(module)
            elif isinstance(module, nn.ConvTranspose2d):
                normal_init(module.weight, std=module.weight.shape[0] ** -0.5)
        # Near N(x, σ) = x: each block near the identity, and a small tail. Training saves the steps that an untrained
        # residual would cost to unlearn.
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                scaled_init(module.second, gain=0.1)
        scaled_init(self.tail, gain=0.01)
        channels_last(self)

    def forward(self, x: Images, sigma: OneOrEach) -> Images:
        """N(x, σ), (b, c, h, w)."""
        return self.linearize(x, sigma)[0]

    def linearize(self, x: Images, sigma: OneOrEach) -> tuple[Images, Pullback]:
        """N(x, σ), and v -> Jᵀv; see `Network.linearize`."""
        self.check(x)
        h, w = x.shape[-2:]
        margin = (0, -w % 2 ** (SCALES - 1), 0, -h % 2 ** (SCALES - 1))
        padded = F.pad(x, margin, mode="replicate")
        u, head = convolve(self.head, with_noise_map(padded, sigma))
        skips: list[Features] = []
        encoders: list[Pullback] = []
        downs: list[Pullback] = []
        ups: list[Pullback] = []
        decoders: list[Pullback] = []
        scales = zip(cast("list[Stack]", self.encoders), cast("list[nn.Conv2d]", self.downs), strict=True)
        for encoder, down in scales:
            u, back = encoder.linearize(u)
            encoders.append(back)
            skips.append(u)
            u, back = convolve(down, u)
            downs.append(back)
        u, body = self.body.linearize(u)
        scales = zip(cast("list[Stack]", self.decoders), cast("list[nn.ConvTranspose2d]", self.ups), skips, strict=True)
        for decoder, up, skip in reversed(list(scales)):
            u, back = upsample(up, u)
            ups.append(back)
            u, back = decoder.linearize(u + skip)
            decoders.append(back)
        u, tail = convolve(self.tail, u)
        layers = _Layers(head, encoders, downs, body, ups, decoders, tail)
        return x - u[..., :h, :w], partial(self._pullback, layers, x, margin)

    def _pullback(self, layers: _Layers, x: Images, margin: tuple[int, int, int, int], v: Images) -> Images:
        # The noise map is a constant of the picture: its channel has no part in the Jacobian.
        d = layers.pull_back(F.pad(v, margin))[:, : self.channels]
        return v - (torch.ops.aten.replication_pad2d_backward(d.to(x.dtype), x, margin) if any(margin) else d)


@dataclass(frozen=True, eq=False)
class _Layers:
    """The vector-Jacobian products of the layers at one picture, each list in the order of the forward pass."""

    head: Pullback
    encoders: list[Pullback]
    downs: list[Pullback]
    body: Pullback
    ups: list[Pullback]
    decoders: list[Pullback]
    tail: Pullback

    def pull_back(self, d: Images) -> Float[Tensor, "b c+1 h w"]:
        """From the last layer to the first; what comes across a skip joins where the skip began."""
        d = self.tail(d)
        across: list[Features] = []
        for decoder, up in zip(reversed(self.decoders), reversed(self.ups), strict=True):
            d = decoder(d)
            across.append(d)
            d = up(d)
        d = self.body(d)
        for encoder, down in zip(reversed(self.encoders), reversed(self.downs), strict=True):
            d = encoder(down(d) + across.pop())
        return self.head(d)
