"""Reading files that others made: regular files alone, no more of them than expected, and nothing is executed."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from elder.errors import UserError

# Nested objects and lists of JSON. Files that this project writes have a few.
DEEPEST = 32
# Bytes of an array, and pixels along one of its axes.
LARGEST_ARRAY, LONGEST_AXIS = 2**26, 2**16


@contextmanager
def opened(path: str | Path) -> Iterator[BufferedReader]:
    """The file at `path`, for reading; links are followed.

    Raises `UserError` if it is missing, may not be read, or is no regular file: a pipe would block, and a device may
    have no end.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise UserError(f"{path}: not a regular file")
        file = Path(path).open("rb")  # noqa: SIM115  an error while the caller reads is none of opening
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None
    with file:
        yield file


def read_json(path: str | Path, largest: int | None = None) -> Any:
    """The content of a JSON file.

    Raises `UserError` when it is missing, is longer than `largest` bytes, or is not valid JSON. See `parse_json`.
    """
    with opened(path) as file:
        content = file.read(-1 if largest is None else largest + 1)
    if largest is not None and len(content) > largest:
        raise UserError(f"{path}: longer than {largest} bytes")
    try:
        return parse_json(content)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def parse_json(content: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises `ValueError`, which names the field, for what `json` lets pass and no file of ours holds: a name given twice,
    NaN, infinity, numbers beyond 64 bits, and objects nested deeper than `DEEPEST`.
    """
    try:
        value = json.loads(content.decode(), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST}") from None
    for names, part in walk(value):
        if len(names) > DEEPEST:
            raise ValueError(f"{field(names)}: nested deeper than {DEEPEST}")
        if isinstance(part, float) and not math.isfinite(part):
            raise ValueError(f"{field(names)} is {part}")
        if isinstance(part, int) and abs(part) >= 2**63:
            raise ValueError(f"{field(names)} is a number beyond 64 bits")
    return value


def walk(content: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value of nested mappings and sequences, with the names that lead to it, like ("images", 0, "psnr")."""
    left: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    while left:
        names, value = left.pop()
        yield names, value
        inner: list[tuple[Any, Any]] = []
        if isinstance(value, Mapping):
            inner = list(value.items())
        elif isinstance(value, list | tuple):
            inner = list(enumerate(value))
        left += [((*names, name), part) for name, part in reversed(inner)]


def field(names: tuple[Any, ...]) -> str:
    """The names that lead to a value in one word, like `images.0.psnr`."""
    return ".".join(map(str, names)) or "the content"


def check_npy(path: str | Path) -> None:
    """Raise `UserError` if a file is no .npy file of real numbers as long as it says, of at most `LARGEST_ARRAY` bytes.

    NumPy reserves the memory that a header asks for before it reads.
    """
    with opened(path) as file:
        try:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = read(file)
        except (ValueError, KeyError) as error:
            raise UserError(f"{path}: corrupt or not a .npy file ({error})") from None
        size, there = math.prod(shape) * dtype.itemsize, Path(path).stat().st_size - file.tell()
    if dtype.kind not in "biuf":
        raise UserError(f"{path}: must hold real numbers; it holds {dtype}")
    if size > LARGEST_ARRAY or max(shape, default=1) > LONGEST_AXIS:
        raise UserError(f"{path}: {dtype} {shape} is too large: at most {LARGEST_ARRAY} bytes, {LONGEST_AXIS} an axis")
    if size != there:
        raise UserError(f"{path}: {dtype} {shape} takes {size} bytes, but the file holds {there}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = value
    return found
