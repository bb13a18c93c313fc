"""Models by their address: a folder, one that comes with the package, or one of a model registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elder import released
from elder.errors import UserError
from elder.model import model, registry

# How the addresses of models that come with the package begin, and those of MLflow.
PREFIX = "released:"
REGISTRY = ("models:/", "runs:/")


def load(
    uri_or_path: str | Path, settings: Mapping[str, Any] | None = None, own_code: str | None = None
) -> model.Model:
    """The model of a bundle folder, one that comes with the package, or one of an MLflow model registry.

    uri_or_path: a folder; `released:NAME`, see `elder.released`; or an MLflow URI such as
    `models:/elder-csmri@champion`. settings: of its problem, in the place of those that it was trained for.
    own_code: the dotted path of the problem's class, such as `mine.Problem`, if you wrote it. Importing it
    executes its module, so a class that a model names is imported only if you name the same one.
    Raises `UserError` if there is no such model, if it is broken, or if it needs a class that you have not named.
    """
    return model.load(folder(uri_or_path), settings, own_code)


def folder(uri_or_path: str | Path) -> Path:
    """The bundle folder that the address of a model stands for; that of a registry may be downloaded for it.

    uri_or_path: as `load` takes it. Raises `UserError` if there is no such model.
    """
    address = str(uri_or_path)
    if address.startswith(PREFIX):
        return released.folder(address.removeprefix(PREFIX))
    if address.startswith(REGISTRY):
        return registry.download(address)
    if address in released.names() and not Path(address).exists():
        raise UserError(f"{address}: no such folder; the model that comes with elder is {PREFIX}{address}")
    return Path(address)
