"""Regularizers by name: explicit ones with a value and a true gradient, and the implicit residual."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from elder import networks
from elder.errors import UserError
from elder.networks.base import Network
from elder.regularizers.base import Energy, Regularizer
from elder.regularizers.implicit import ImplicitResidual
from elder.regularizers.least_squares import LeastSquaresResidual
from elder.regularizers.red import REDPotential
from elder.regularizers.ridge import ConvexRidge, WeaklyConvexRidge
from elder.regularizers.scalar import ScalarPotential
from elder.regularizers.spline_ridge import ConvexSplineRidge, WeaklyConvexSplineRidge
from elder.regularizers.total_variation import SmoothedTotalVariation

OVER_A_NETWORK: dict[str, Callable[[Network], Regularizer]] = {
    "implicit": ImplicitResidual,
    "least_squares": LeastSquaresResidual,
    "red": REDPotential,
    "scalar": ScalarPotential,
}
OF_FILTERS: dict[str, Callable[..., Regularizer]] = {
    "convex_ridge": ConvexRidge,
    "crr": ConvexSplineRidge,
    "total_variation": SmoothedTotalVariation,
    "wcrr": WeaklyConvexSplineRidge,
    "weakly_convex_ridge": WeaklyConvexRidge,
}
# Parameters: 256 MiB in float32, twice those of the DRUNet of Zhang et al. 2021.
LARGEST = 2**26
EXPLICIT = sorted({*OVER_A_NETWORK, *OF_FILTERS} - {"implicit"})


def describe(name: str, channels: int, network: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `make` takes for the regularizer `name` of pictures with `channels` colors.

    network: name and settings of the network, which a regularizer of filters does without. settings: its own.
    """
    if name in OVER_A_NETWORK:
        return {"name": name, "network": {"channels": channels, **network}, **settings}
    return {"name": name, "channels": channels, **settings}


def completed(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description with every default written out, so that two of the same regularizer are equal.

    Lists stand for sequences, as in JSON.
    """
    name, settings = description["name"], {key: value for key, value in description.items() if key != "name"}
    if name in OF_FILTERS:
        return {"name": name, **_with_defaults(OF_FILTERS[name], settings)}
    network = dict(settings["network"])
    kind = network.pop("name")
    return {"name": name, "network": {"name": kind, **_with_defaults(networks.NETWORKS[kind], network)}}


def _with_defaults(kind: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
    whole = {**defaults, **settings}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in whole.items()}


def make(name: str, network: dict[str, Any] | None = None, **settings: Any) -> Regularizer:
    """The regularizer `name`: over the network described by its `name` and settings, or of filters with `settings`.

    Raises `UserError` for an unknown name or setting, and before it takes memory for more than `LARGEST` parameters.
    """
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in _make(name, network, settings).parameters())
    if size > LARGEST:
        raise UserError(f"regularizer {name}: {size} parameters; at most {LARGEST} are supported")
    return _make(name, network, settings)


def _make(name: str, network: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> Regularizer:
    if name in OVER_A_NETWORK:
        if not network or "name" not in network:
            raise UserError(f"regularizer {name}: needs a network with a name")
        if settings:
            raise UserError(f"regularizer {name}: takes a network alone; got {', '.join(settings)}")
        return OVER_A_NETWORK[name](networks.make(**network))
    if name not in OF_FILTERS:
        raise UserError(f"unknown regularizer {name!r}: there are {', '.join(sorted({*OVER_A_NETWORK, *OF_FILTERS}))}")
    if network:
        raise UserError(f"regularizer {name}: is made of filters and takes no network")
    try:
        return OF_FILTERS[name](**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"regularizer {name}: {error}") from None


__all__ = [
    "EXPLICIT",
    "OF_FILTERS",
    "OVER_A_NETWORK",
    "ConvexRidge",
    "ConvexSplineRidge",
    "Energy",
    "ImplicitResidual",
    "LeastSquaresResidual",
    "REDPotential",
    "Regularizer",
    "ScalarPotential",
    "SmoothedTotalVariation",
    "WeaklyConvexRidge",
    "WeaklyConvexSplineRidge",
    "completed",
    "describe",
    "make",
]
