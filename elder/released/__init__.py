"""The models that come with the package: each a bundle in a folder of its own here, with a card.

Each is made by a preset and `python -m pipeline.release`; its card says from which data, by which recipe and at which
commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elder import io
from elder.errors import UserError

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The released models, in alphabetical order."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def folder(name: str) -> Path:
    """The bundle of the released model `name`. Raises `UserError` if there is none of that name."""
    if name not in names():
        raise UserError(f"released:{name}: no such model; there are {', '.join(names()) or 'none'}")
    return FOLDER / name


def denoiser(description: Mapping[str, Any]) -> str | None:
    """The name of the released denoiser whose regularizer has this description, or `None`.

    description: what `regularizers.make` takes: the same kind, network and number of channels must match, since the
    weights are to fit.
    """
    for name in names():
        config = io.read_json(FOLDER / name / "config.json")
        if config["problem"]["name"] == "denoise" and config["regularizer"] == description:
            return name
    return None
