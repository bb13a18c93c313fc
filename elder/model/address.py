"""Models by their address: a folder, one that comes with the package, or one of a model registry."""

from __future__ import annotations

from pathlib import Path

from elder import released
from elder.model import model, registry


def load(uri_or_path: str | Path) -> model.Model:
    """The model of a bundle folder, one that comes with the package, or one of an MLflow model registry.

    uri_or_path: a folder; `released:NAME`, see `elder.released`; or an MLflow URI such as
    `models:/elder-csmri@champion`. Raises `UserError` if there is no such model, or if it is broken.
    """
    address = str(uri_or_path)
    if address.startswith("released:"):
        return model.load(released.folder(address.removeprefix("released:")))
    if address.startswith(("models:/", "runs:/")):
        return model.load(registry.download(address))
    return model.load(uri_or_path)
