"""The tables that every law runs over: a new operator, network or regularizer is one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from elder import networks, regularizers
from elder.operators import Blur, Identity, MaskedFourier, Masking, Operator, Radon
from elder.problems import masks

# Non-square, odd and even, batched.
SIZES = [(2, 1, 9, 12), (3, 1, 8, 7), (1, 2, 6, 6)]

Rng = torch.Generator
Shape = tuple[int, int, int, int]  # (b, c, h, w)


def randn(shape: tuple[int, ...], rng: Rng) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def masked_fourier(kind: str, each: bool) -> Callable[[Shape, Rng], Operator]:
    def make(shape: Shape, rng: Rng) -> Operator:
        draw = [masks.MASKS[kind](shape[-2:], 0.4, rng).double() for _ in range(shape[0])]
        return MaskedFourier(torch.stack(draw).unsqueeze(1) if each else draw[0])

    return make


def blur(scale: int, each: bool) -> Callable[[Shape, Rng], Operator]:
    def make(shape: Shape, rng: Rng) -> Operator:
        draw = [torch.rand(3, 5, generator=rng, dtype=torch.float64) for _ in range(shape[0])]
        unit = [kernel / kernel.sum() for kernel in draw]
        return Blur.of(torch.stack(unit).unsqueeze(1) if each else unit[0], shape[-2:], scale)

    return make


def masking(shape: Shape, rng: Rng) -> Masking:
    return Masking((torch.rand(shape[0], 1, *shape[-2:], generator=rng) < 0.5).double())


def radon(shape: Shape, rng: Rng) -> Operator:
    return Radon.of(torch.arange(5) * torch.pi / 5 + 0.1, shape[-2:], torch.float64)


OPERATORS: dict[str, Callable[[Shape, Rng], Operator]] = {
    "identity": lambda shape, rng: Identity(),
    "fourier radial": masked_fourier("radial", each=False),
    "fourier cartesian": masked_fourier("cartesian", each=True),
    "fourier random": masked_fourier("random", each=True),
    "blur": blur(1, each=False),
    "blurs": blur(1, each=True),
    "masking": masking,
    "radon": radon,
}

# Decimation by s needs sizes that s divides.
DECIMATING = {f"blur, every {s}": (s, blur(s, each=s != 3)) for s in (2, 3, 4)}

NETWORKS = {
    "dncnn": {"name": "dncnn", "width": 4, "depth": 3},
    "drunet": {"name": "drunet", "widths": (3, 4, 3, 4), "blocks": 1},
    "drunet, softplus": {"name": "drunet", "widths": (3, 4, 3, 4), "blocks": 1, "activation": "softplus"},
}

ENERGIES = [
    *((k, name) for k in regularizers.OVER_A_NETWORK if k in regularizers.EXPLICIT for name in NETWORKS),
    *((kind, "") for kind in regularizers.OF_FILTERS),
]


def network(name: str, channels: int = 1) -> networks.Network:
    """A small network in float64, with weights large enough that its curvature matters."""
    torch.manual_seed(4)
    made = networks.make(channels=channels, **NETWORKS[name]).double()
    with torch.no_grad():
        for parameter in made.parameters():
            # A DRUNet starts with blocks near the identity, which would hide most of the Jacobian.
            if isinstance(made, networks.DRUNet) and parameter.ndim == 4:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def regularizer(kind: str, name: str = "dncnn", channels: int = 1) -> Any:
    """A small regularizer in float64: an energy for every kind except implicit; its attributes depend on the kind."""
    if kind in regularizers.OVER_A_NETWORK:
        return regularizers.OVER_A_NETWORK[kind](network(name, channels))
    torch.manual_seed(5)
    if kind == "total_variation":
        return regularizers.make(kind, epsilon=0.1).double()
    if kind in ("crr", "wcrr"):
        # Wide enough for standard normal pictures; random parameters, so that slopes of both signs are met.
        made = regularizers.make(kind, channels=channels, filters=[2, 3], kernel_size=3, cells=120).double()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
        return made
    return regularizers.make(kind, channels=channels, filters=4, filter_size=3, knees=3).double()
