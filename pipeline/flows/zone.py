"""The time zone of the machine: `python -m pipeline.flows.zone` prints its name. Imports nothing of Prefect."""

from __future__ import annotations

import os
from pathlib import Path
from zoneinfo import ZoneInfo


def local_zone() -> str:
    """The IANA name of the machine's time zone: of TZ or /etc/localtime; UTC if neither says."""
    named = os.environ.get("TZ", "").removeprefix(":")
    linked = str(Path("/etc/localtime").resolve()).rpartition("zoneinfo/")[2]
    for name in (named, linked):
        try:
            if name and not name.startswith("/"):
                return ZoneInfo(name).key
        except (KeyError, ValueError, OSError):
            continue
    return "UTC"


if __name__ == "__main__":
    print(local_zone())
