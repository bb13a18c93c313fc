"""What a regularizer asks of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from elder.shapes import Anything, Features, Images, OneOrEach

Pullback = Callable[[Features], Features]
# Features of a layer, and layers in a row. Larger ones are mistakes, and building them takes long.
WIDEST, DEEPEST = 4096, 256


class Network(nn.Module, ABC):
    """N_θ: a noisy picture and its noise level σ to a picture, (b, c, h, w) -> (b, c, h, w)."""

    channels: int

    @abstractmethod
    def forward(self, x: Images, sigma: OneOrEach) -> Images:
        """N_θ(x, σ); sigma: (b,) or scalar, in the units of x. Raises `ValueError` for another number of channels."""

    @abstractmethod
    def linearize(self, x: Images, sigma: OneOrEach) -> tuple[Images, Pullback]:
        """N_θ(x, σ), and v -> Jᵀv with J = ∂N_θ/∂x at x, written as a forward computation.

        Both are differentiable when the caller records, so that training through ∇h differentiates once, not twice.
        """

    def check(self, x: Anything) -> None:
        """Raise `ValueError` if x is not (b, channels, h, w)."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"the network takes images (b, {self.channels}, h, w); got {tuple(x.shape)}")


def with_noise_map(x: Images, sigma: OneOrEach) -> Float[Tensor, "b c+1 h w"]:
    """x with σ as one more, constant channel, (b, c, h, w) -> (b, c + 1, h, w)."""
    level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
    return torch.cat([x, level.expand(x.shape[0], 1, *x.shape[-2:])], dim=1)


@torch.no_grad()
def normal_init(weight: Tensor, std: float) -> None:
    """Normal values of the standard deviation `std`, and nothing for a weight without memory, on the meta device.

    There, PyTorch imports its symbolic tools for random numbers, division and logarithms. That takes 1.5 s and 80 MB,
    so constructors of networks and regularizers do without them.
    """
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)


@torch.no_grad()
def scaled_init(conv: nn.Conv2d, gain: float = 1.0) -> None:
    """Normal weights of variance gain² / fan-in, zero bias."""
    normal_init(conv.weight, std=gain / conv.weight[0].numel() ** 0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def channels_last(network: nn.Module) -> None:
    """Lay the weights out channel by channel of a pixel: about twice as fast on a CPU."""
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
