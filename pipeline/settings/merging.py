"""How settings of params.yaml make those that are in force. Stages watch this module, as its code affects results."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from elder import regularizers


def merged(section: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a section, with those that a cell or a regularizer has of its own in their places."""
    return {**section, **own}


def choices(changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every choice of one value for each setting, where a list offers several; the last setting varies fastest."""
    values = [value if isinstance(value, list) else [value] for value in changes.values()]
    return [dict(zip(changes, chosen, strict=True)) for chosen in itertools.product(*values)]


def description(
    regularizer: str, channels: int, network: Mapping[str, Any], own_network: Mapping[str, Any], own: Mapping[str, Any]
) -> dict[str, Any]:
    """What `regularizers.make` takes for the regularizer of that name.

    Args:
        channels: colors of the pictures.
        network: the section `network`.
        own_network, own: settings of the regularizer: those in the place of ones of the section, and the others.
    """
    return regularizers.describe(regularizer, channels, merged(network, own_network), own)
