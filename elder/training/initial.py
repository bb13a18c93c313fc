"""Where pre-training starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elder import released
from elder.model import bundle
from elder.regularizers.base import Regularizer


def initialize(regularizer: Regularizer, description: Mapping[str, Any], init: str) -> str | None:
    """Load the weights from which training starts, in place, and return the name of the released model they are from.

    init: `none` keeps the weights as they are; `released` takes those of the released denoiser of the same
    description (what `regularizers.make` takes), and keeps the weights and returns `None` if there is no such model.
    """
    name = released.denoiser(description) if init == "released" else None
    if name is not None:
        trained, _ = bundle.read(released.folder(name))
        regularizer.load_state_dict(trained.state_dict())
    return name
