"""A chain of convolutions without activations between them, and a bound on its norm that holds for any picture size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F

from elder.networks import strips
from elder.networks.base import WIDEST, normal_init
from elder.shapes import Features, Images, PerImage, Scalar
from elder.tensors import folded, wrapped

# Larger chains are mistakes: the bound samples a transfer function of `channels` times `channels` entries.
MOST_CHANNELS, LONGEST, LARGEST_KERNEL = 32, 6, 15
# Squarings of the Gram matrices: their Frobenius norm to the power of 1/16 exceeds the spectral norm by 3.5 % at most
# for three colors, and by nothing for one.
SQUARINGS = 4
# Kernels (g, f, k, k) from first to last; their shapes differ.
Kernels = Sequence[Tensor]


class Chain(nn.Module):
    """W x = K_L * ... * K_1 * x with circular boundaries, scaled so that ‖W‖ <= 1 for pictures of any size.

    The first kernels have zero mean in each color, so a constant picture gives 0. Two or more small kernels in a row
    reach farther than one, and describe large filters by few numbers (Goujon et al. 2023).

    widths: the features after each convolution; the last number is that of the filters. kernel_size: odd.
    Raises `ValueError` for a number of channels, widths, or a kernel size that are out of range.
    """

    def __init__(self, channels: int, widths: Sequence[int], kernel_size: int) -> None:
        super().__init__()
        if not (1 <= channels <= MOST_CHANNELS and 1 <= len(widths) <= LONGEST and min(widths) >= 1):
            raise ValueError(
                f"a chain takes 1 to {MOST_CHANNELS} channels and 1 to {LONGEST} widths >= 1; got {channels}, {widths}"
            )
        if max(widths) > WIDEST or not 3 <= kernel_size <= LARGEST_KERNEL or kernel_size % 2 == 0:
            raise ValueError(
                f"a chain takes widths up to {WIDEST} and an odd kernel_size from 3 to {LARGEST_KERNEL}; "
                f"got {widths}, {kernel_size}"
            )
        self.kernels = nn.ParameterList(
            torch.empty(g, f, kernel_size, kernel_size) for f, g in pairwise([channels, *widths])
        )
        for kernel in self.kernels:
            normal_init(kernel, std=1 / (kernel_size * kernel.shape[1] ** 0.5))

    def scaled(self) -> list[Tensor]:
        """The kernels of W, from first to last; computed once for all uses in one evaluation."""
        first, *rest = cast("list[Tensor]", list(self.kernels))
        kernels = [first - first.mean((2, 3), keepdim=True), *rest]
        return [*kernels[:-1], kernels[-1] / norm_bound(kernels).clamp(min=torch.finfo(first.dtype).tiny)]


def analyze(kernels: Kernels, x: Images) -> Features:
    """W x, (b, c, h, w) -> (b, filters, h, w)."""
    for kernel in kernels:
        x = F.conv2d(wrapped(x, kernel.shape[-1] // 2), kernel)
    return x


def synthesize(kernels: Kernels, u: Features) -> Images:
    """Wᵀ u, (b, filters, h, w) -> (b, c, h, w)."""
    for kernel in reversed(kernels):
        u = F.conv2d(wrapped(u, kernel.shape[-1] // 2), kernel.transpose(0, 1).flip(2, 3))
    return u


def value_and_grad(kernels: Kernels, x: Images, profile: strips.Profile) -> tuple[PerImage, Images]:
    """Σ ψ(W x), (b,) in float64, and its gradient Wᵀ ψ′(W x), (b, c, h, w); see `strips.value_and_grad`."""
    *first, last = kernels
    reach = last.shape[-1] // 2
    value, gradient = strips.value_and_grad(wrapped(analyze(first, x), reach), last, profile)
    return value, synthesize(first, folded(gradient, reach))


def norm_bound(kernels: Kernels) -> Scalar:
    """An upper bound of max_ω ‖K̂(ω)‖, K̂ the transfer function of the chain, with its gradient.

    It bounds the norm of the circular convolution of any size. K̂ᴴK̂ is sampled from the impulse response of WᵀW, which
    is short. The largest sample is raised by the most that the samples can miss: a trigonometric polynomial of degree n
    exceeds m equidistant samples by at most 1/cos(πn/m) in each direction.
    """
    first = kernels[0]
    channels, reach = first.shape[1], sum(kernel.shape[-1] // 2 for kernel in kernels)
    side = 4 * reach + 1  # of the impulse response of WᵀW
    impulse = first.new_zeros(channels, channels, side, side)
    impulse[:, :, 2 * reach, 2 * reach] = torch.eye(channels, dtype=first.dtype, device=first.device)
    # A bound in low precision would bound nothing.
    with torch.autocast(first.device.type, enabled=False):
        response = synthesize(kernels, analyze(kernels, impulse))
    grid = 2 ** math.ceil(math.log2(20 * reach))
    # A shift of the response changes phases, the same in every entry of a matrix.
    gram = torch.fft.rfft2(response, s=(grid, grid)).flatten(2).permute(2, 0, 1)
    with torch.no_grad():
        worst = _upper_norm(gram).argmax()
    return _upper_norm(gram[worst]).sqrt() / math.cos(math.pi * reach / grid) ** 2


def _upper_norm(gram: Complex[Tensor, "*n c c"]) -> Float[Tensor, "*n"]:
    """‖G¹⁶‖ in the Frobenius norm, to the power of 1/16: at least the spectral norm of a Hermitian matrix G."""
    scale = gram.detach().abs().max().clamp(min=torch.finfo(gram.dtype).tiny)
    power = gram / scale
    for _ in range(SQUARINGS):
        power = power @ power
    return scale * torch.linalg.matrix_norm(power) ** (1 / 2**SQUARINGS)
