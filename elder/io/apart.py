"""What is read is not written over."""

from __future__ import annotations

import os
from pathlib import Path

from elder.errors import UserError


def check_apart(read: str | Path, written: str | Path) -> None:
    """Raise `UserError` if writing to `written` could change what lies at `read`, or be read with it the next time.

    Both are files or folders; `written` may be missing. Refused are the same place, a place below a folder that is
    read, and the folder of a file that is read. Files in a folder deeper below `written` are safe, since commands write
    no folders. The file system compares the places. So links, hard links, `..`, and capital letters where they make no
    difference, do not hide that two places are one.
    """
    if _is_one(read, written):
        raise UserError(f"{written}: would replace {read}, which is read; write to another place")
    if any(_is_one(read, folder) for folder in Path(os.path.realpath(written)).parents):
        raise UserError(f"{written}: lies in {read}, and would be read with it the next time; write to another place")
    if Path(read).is_file() and _is_one(Path(os.path.realpath(read)).parent, written):
        raise UserError(f"{written}: holds {read}, which is read and could be replaced; write to another place")


def _is_one(path: str | Path, other: str | Path) -> bool:
    return Path(path).exists() and Path(other).exists() and Path(path).samefile(other)
