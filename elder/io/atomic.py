"""Writing files whole or not at all."""

from __future__ import annotations

import csv
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elder.errors import UserError
from elder.io.bounded import field, walk

# Of a temporary name, in characters; longer ones tell no format.
LONGEST_SUFFIX = 16


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place when the block ends well, and vanishes when it does not.

    The file gets the mode of the umask. A link stays a link: the file that it leads to is replaced. Raises `UserError`
    if a link leads to a write-protected file, or if there is a folder or a device at `path`.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink() or (target.exists() and not target.is_file()):  # links that lead to each other stay links
        raise UserError(f"{path}: is there already, and is no file")
    # DVC can link results to its cache, whose files it protects from writing.
    if Path(path).is_symlink() and target.exists() and not target.stat().st_mode & stat.S_IWUSR:
        raise UserError(f"{path}: is a link to {target}, which is write-protected; remove the link, or choose another")
    target.parent.mkdir(parents=True, exist_ok=True)
    # The name of `target` may be as long as names may be. The suffix tells writers the format.
    suffix = target.suffix if len(target.suffix) <= LONGEST_SUFFIX else ""
    temporary = target.with_name(f".{secrets.token_hex(8)}{suffix}")
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    os.close(handle)
    try:
        yield temporary
        temporary.chmod(mode)  # a writer may have made the file again, with another mode
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as JSON, indented, keys in the order given, with a newline at the end.

    Raises `ValueError`, which names the field, for NaN and infinity: JSON has neither.
    """
    for names, value in walk(content):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path}: {field(names)} is {value}, which JSON can't hold")
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
