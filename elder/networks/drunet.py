"""DRUNet (Zhang et al. 2021): a residual U-Net without biases, conditioned on the noise level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elder.networks import activations
from elder.networks.base import Network, Pullback, channels_last, scaled_init, with_noise_map
from elder.networks.layers import ResidualBlock, Stack, convolve, upsample

SCALES = 4


class DRUNet(Network):
    """N(x, σ) = x − u(x, σ): a U-Net u of four scales, `blocks` residual blocks (3x3, φ, 3x3) at each.

    activation φ: elu or softplus, see `elder.networks.activations`; in place of ReLU, so that an energy built on N has
    a continuous gradient. Images are extended to multiples of 8 by repeating their border, here and nowhere else.
    widths: channels of the four scales; the paper's network has 64, 128, 256, 512 and 4 blocks.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (16, 32, 64, 128),
        blocks: int = 2,
        activation: str = "elu",
    ) -> None:
        super().__init__()
        if channels < 1 or blocks < 1 or len(widths) != SCALES or min(widths) < 1:
            raise ValueError(f"DRUNet needs channels, blocks >= 1 and four widths; got {channels}, {blocks}, {widths}")
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
                nn.init.normal_(module.weight, std=module.weight.shape[0] ** -0.5)
        # Near N(x, σ) = x: each block near the identity, and a small tail. Training saves the steps that an untrained
        # residual would cost to unlearn.
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                scaled_init(module.second, gain=0.1)
        scaled_init(self.tail, gain=0.01)
        channels_last(self)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """N(x, σ), (b, c, h, w)."""
        return self.linearize(x, sigma)[0]

    def linearize(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Pullback]:
        """N(x, σ), and v -> Jᵀv; see `Network.linearize`."""
        self.check(x)
        h, w = x.shape[-2:]
        margin = (0, -w % 2 ** (SCALES - 1), 0, -h % 2 ** (SCALES - 1))
        padded = F.pad(x, margin, mode="replicate")
        u, head = convolve(self.head, with_noise_map(padded, sigma))
        skips, encoders, downs, ups, decoders = [], [], [], [], []
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

        def pullback(v: Tensor) -> Tensor:
            d = tail(F.pad(v, margin))
            across = []
            for decoder, up in zip(reversed(decoders), reversed(ups), strict=True):
                d = decoder(d)
                across.append(d)
                d = up(d)
            d = body(d)
            for encoder, down in zip(reversed(encoders), reversed(downs), strict=True):
                d = encoder(down(d) + across.pop())
            d = head(d)[:, : self.channels]
            return v - (torch.ops.aten.replication_pad2d_backward(d.to(x.dtype), x, margin) if any(margin) else d)

        return x - u[..., :h, :w], pullback
