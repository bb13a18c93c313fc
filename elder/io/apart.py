"""What is read is not written over."""

from __future__ import annotations

import os
from pathlib import Path

from elder.errors import UserError


def check_apart(read: str | Path, written: str | Path) -> None:
    """Raise `UserError` if writing to `written` could change what lies at `read`, or be read with it the next time.

    Both are files or folders; `written` may be missing. Refused are the same place, a place below a folder that is
    read, and a folder above what is read. The file system compares the places. So links, hard links, `..`, and capital
    letters where they make no difference, do not hide that two places are one.
    """
    if Path(read).exists() and Path(written).exists() and Path(read).samefile(written):
        raise UserError(f"{written}: would replace {read}, which is read; write to another place")
    if _lies_below(written, read):
        raise UserError(f"{written}: lies in {read}, and would be read with it the next time; write to another place")
    if _lies_below(read, written):
        raise UserError(f"{written}: holds {read}, which is read and could be replaced; write to another place")


def _lies_below(path: str | Path, folder: str | Path) -> bool:
    above = [parent for parent in Path(os.path.realpath(path)).parents if parent.exists()]
    return Path(folder).exists() and any(parent.samefile(folder) for parent in above)
