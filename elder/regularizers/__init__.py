"""Regularisers: explicit ones with a value and a true gradient, by name."""

from __future__ import annotations

from typing import Any

from elder import networks
from elder.errors import UserError
from elder.regularizers.base import Energy, Regularizer
from elder.regularizers.least_squares import LeastSquaresResidual

REGULARIZERS: dict[str, type[LeastSquaresResidual]] = {"least_squares": LeastSquaresResidual}


def make(name: str, network: dict[str, Any]) -> Energy:
    """The regulariser `name` over the network described by its `name` and settings.

    Raises `UserError` for an unknown name or setting.
    """
    if name not in REGULARIZERS:
        raise UserError(f"unknown regularizer {name!r}: there are {', '.join(sorted(REGULARIZERS))}")
    if "name" not in network:
        raise UserError("network: needs a name")
    return REGULARIZERS[name](networks.make(**network))


__all__ = ["REGULARIZERS", "Energy", "LeastSquaresResidual", "Regularizer", "make"]
