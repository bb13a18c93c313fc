"""Where pre-training starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elder import regularizers, released
from elder.errors import UserError
from elder.model import bundle
from elder.regularizers.base import Regularizer


def initialize(regularizer: Regularizer, description: Mapping[str, Any], init: str) -> str | None:
    """Load the weights from which training starts, in place, and return where they are from.

    init: `none` keeps the weights as they are; `released` takes those of the released denoiser of the same
    description (what `regularizers.make` takes), and keeps the weights and returns `None` if there is no such model;
    anything else is the folder of a bundle, whose regularizer must have the same description.
    Raises `UserError` for a bundle that is missing, broken, or of another architecture.
    """
    if init == "none":
        return None
    name = released.denoiser(description) if init == "released" else None
    if init == "released" and name is None:
        return None
    trained, config = bundle.read(init if name is None else released.folder(name))
    if regularizers.completed(config["regularizer"]) != regularizers.completed(description):
        raise UserError(f"init={init}: that bundle holds another regularizer or network than is to be trained")
    regularizer.load_state_dict(trained.state_dict())
    return init if name is None else f"released:{name}"


def told(start: str | None, init: str) -> str:
    """One line on where training starts, and why. start: what `initialize` returned."""
    if start is not None:
        return f"starts from {start}"
    missing = "; no released denoiser has this regularizer, network and number of colors" if init == "released" else ""
    return f"starts from random weights{missing}"
