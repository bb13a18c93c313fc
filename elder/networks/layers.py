"""Layers with their vector-Jacobian products, as (output, pullback) pairs; shapes are (b, channels, h, w)."""

from __future__ import annotations

from functools import partial
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from elder.networks.activations import Activation
from elder.networks.base import Pullback
from elder.shapes import Features

Outputs = Float[Tensor, "b g p q"]  # of a layer that changes features and size


def convolve(conv: nn.Conv2d, u: Features) -> tuple[Outputs, Pullback]:
    """A convolution, and its transpose."""
    stride, padding = conv.stride, cast("tuple[int, int]", conv.padding)
    return conv(u), lambda v: F.conv_transpose2d(v, conv.weight, stride=stride, padding=padding)


def upsample(conv: nn.ConvTranspose2d, u: Features) -> tuple[Outputs, Pullback]:
    """A transposed convolution, and the convolution that it transposes."""
    stride, padding = conv.stride, cast("tuple[int, int]", conv.padding)
    return conv(u), lambda v: F.conv2d(v, conv.weight, stride=stride, padding=padding)


class ResidualBlock(nn.Module):
    """u + conv(φ(conv(u))), 3x3, without biases."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def linearize(self, u: Features) -> tuple[Features, Pullback]:
        """The output for u, (b, width, h, w), and the vector-Jacobian product."""
        inner, first = convolve(self.first, u)
        a = self.activation.apply(inner)
        outer, second = convolve(self.second, a)
        return u + outer, lambda v: v + first(self.activation.pullback(second(v), a))


class Stack(nn.ModuleList):
    """Residual blocks, one after the other."""

    def __init__(self, width: int, blocks: int, activation: Activation) -> None:
        super().__init__(ResidualBlock(width, activation) for _ in range(blocks))

    def linearize(self, u: Features) -> tuple[Features, Pullback]:
        """The output of the layers for u, and the vector-Jacobian product of their composition."""
        pullbacks: list[Pullback] = []
        for block in cast("list[ResidualBlock]", self):
            u, pullback = block.linearize(u)
            pullbacks.append(pullback)
        return u, partial(_pull_back, pullbacks)


def _pull_back(pullbacks: list[Pullback], v: Features) -> Features:
    """The pullbacks of a composition, from the last to the first."""
    for pullback in reversed(pullbacks):
        v = pullback(v)
    return v
