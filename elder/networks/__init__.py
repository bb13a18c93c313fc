"""Convolutional networks with a written-out vector-Jacobian product, by name."""

from __future__ import annotations

from typing import Any

from elder.errors import UserError
from elder.networks.base import Network
from elder.networks.dncnn import DnCNN
from elder.networks.drunet import DRUNet

NETWORKS: dict[str, type[Network]] = {"dncnn": DnCNN, "drunet": DRUNet}


def make(name: str, **settings: Any) -> Network:
    """The network `name`, its constructor called with `settings`. Raises `UserError` for what it does not know."""
    if name not in NETWORKS:
        raise UserError(f"unknown network {name!r}: there are {', '.join(sorted(NETWORKS))}")
    try:
        return NETWORKS[name](**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"network {name}: {error}") from None


__all__ = ["NETWORKS", "DRUNet", "DnCNN", "Network", "make"]
