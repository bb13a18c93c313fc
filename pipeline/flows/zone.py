"""The time zone of the machine: `python -m pipeline.flows.zone` prints its name. Imports nothing of Prefect."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from zoneinfo import ZoneInfo


def local_zone() -> str:
    """The IANA name of the machine's time zone: of TZ or /etc/localtime; UTC if neither says.

    Raises `ValueError` if TZ is set to what is no name of a zone, such as JST-9: schedules can't go by it.
    """
    if named := os.environ.get("TZ", "").removeprefix(":"):
        if found := _known(named.rpartition("zoneinfo/")[2]):
            return found
        raise ValueError(f"TZ={named}: is not the name of a time zone, such as Europe/Berlin; correct it, or unset it")
    return _known(str(Path("/etc/localtime").resolve()).rpartition("zoneinfo/")[2]) or "UTC"


def _known(name: str) -> str | None:
    try:
        return ZoneInfo(name).key if name and not name.startswith("/") else None
    except (KeyError, ValueError, OSError):
        return None


if __name__ == "__main__":
    try:
        print(local_zone())
    except ValueError as error:
        sys.exit(f"zone: {error}")
