"""The tables that every law runs over: a new operator, network or regulariser is one row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from elder import networks, regularizers
from elder.operators import Identity, MaskedFourier, Operator
from elder.problems import masks

# Non-square, odd and even, batched.
SIZES = [(2, 1, 9, 12), (3, 1, 8, 7), (1, 2, 6, 6)]

Rng = torch.Generator


def randn(shape: tuple[int, ...], rng: Rng) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def masked_fourier(kind: str, each: bool) -> Callable[[tuple[int, ...], Rng], Operator]:
    def make(shape: tuple[int, ...], rng: Rng) -> Operator:
        draw = [masks.MASKS[kind](shape[-2:], 0.4, rng).double() for _ in range(shape[0])]
        return MaskedFourier(torch.stack(draw).unsqueeze(1) if each else draw[0])

    return make


OPERATORS: dict[str, Callable[[tuple[int, ...], Rng], Operator]] = {
    "identity": lambda shape, rng: Identity(),
    "fourier radial": masked_fourier("radial", each=False),
    "fourier cartesian": masked_fourier("cartesian", each=True),
    "fourier random": masked_fourier("random", each=True),
}

NETWORKS = {
    "dncnn": {"name": "dncnn", "width": 4, "depth": 3},
    "dncnn deep": {"name": "dncnn", "width": 3, "depth": 5},
}

REGULARIZERS = list(regularizers.REGULARIZERS)


def network(name: str, channels: int = 1) -> networks.Network:
    """A small network in float64, with weights large enough that its curvature matters."""
    torch.manual_seed(4)
    made = networks.make(channels=channels, **NETWORKS[name]).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def regularizer(kind: str, name: str, channels: int = 1) -> regularizers.Energy:
    return regularizers.REGULARIZERS[kind](network(name, channels))
