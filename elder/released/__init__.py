"""The models that come with the package: each a bundle in its own folder here, with a card.

Each is made by a preset and `python -m pipeline.release`; its card says from which data, by which recipe and at which
commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elder import io, regularizers
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


def config(name: str) -> dict[str, Any]:
    """The configuration of the released model `name`; `metadata.card` holds the facts of its card."""
    return io.read_json(folder(name) / "config.json")


def listing() -> list[dict[str, Any]]:
    """The facts of every released model: name, problem, regularizer, psnr, parameters, bytes, about, data and terms.

    psnr: on validation, in dB, as stored.
    """
    rows = []
    for name in names():
        written = config(name)
        row = {"name": name, "problem": written["problem"]["name"], "regularizer": written["regularizer"]["name"]}
        rows.append(row | written["metadata"]["card"])
    return rows


def denoiser(description: Mapping[str, Any]) -> str | None:
    """The name of the released denoiser whose regularizer has this description, or `None`.

    description: what `regularizers.make` takes: the same kind, network and number of channels must match, since the
    weights are to fit. A model after DEQ training is no start for pre-training: its weights fit fixed points.
    """
    wanted = regularizers.completed(description)
    for name in names():
        written = config(name)
        fits = regularizers.completed(written["regularizer"]) == wanted
        if fits and written["problem"]["name"] == "denoise" and written["metadata"].get("stage") != "finetune":
            return name
    return None
