"""Entries of dvc.lock: read, and taken over from a working copy.

DVC's own reader and writer are used: a hash such as 12e45678 is a number to another reader of YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.flows.commands import RepositoryBusy
from pipeline.flows.repository import TEMPORARY, locked

NAME = "dvc.lock"
SCHEMA = "2.0"


def read(folder: Path) -> dict[str, Any]:
    """The entry of every stage; none without a dvc.lock."""
    from dvc.utils.serialize import load_yaml

    path = folder / NAME
    return dict(load_yaml(str(path)).get("stages", {})) if path.exists() else {}


def write(folder: Path, entries: Mapping[str, Any]) -> None:
    """Put these entries in the place of all that are there. The file is replaced at once."""
    from dvc.utils.serialize import dump_yaml

    fresh = folder / TEMPORARY / f"{NAME}.new"
    fresh.parent.mkdir(parents=True, exist_ok=True)
    dump_yaml(str(fresh), {"schema": SCHEMA, "stages": dict(entries)})
    fresh.replace(folder / NAME)


def merge(folder: Path, entries: Mapping[str, Any]) -> None:
    """Add these entries, or put them in the place of those of the same stages.

    Raises `RepositoryBusy` while a DVC command works in the folder.
    """
    from dvc.lock import LockError

    try:
        with locked(folder, "lock"):
            write(folder, read(folder) | dict(entries))
    except LockError:
        raise RepositoryBusy(f"{folder / NAME}: another DVC process holds the repository; trying again") from None
