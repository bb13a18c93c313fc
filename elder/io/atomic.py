"""Writing text whole or not at all, and reading it."""

from __future__ import annotations

import csv
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elder.errors import UserError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place when the block ends well, and vanishes when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o644)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as JSON with sorted layout and a newline at the end.

    Raises `ValueError`, which names the field, for NaN and infinity: JSON has neither.
    """
    for field, value in _numbers(content):
        if not math.isfinite(value):
            raise ValueError(f"{path}: {field or 'the content'} is {value}, which JSON can't hold")
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV; the columns are the keys of all rows, in the order of their first appearance.

    A cell is empty where a row has no value, or NaN, or infinity.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})


def _numbers(content: Any, field: str = "") -> Iterator[tuple[str, float]]:
    """Every float of nested mappings and sequences, with the field that holds it, like `images.0.psnr`."""
    if isinstance(content, float):
        yield field, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _numbers(value, f"{field}.{key}" if field else str(key))
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from _numbers(value, f"{field}.{index}" if field else str(index))


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises `UserError` when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
