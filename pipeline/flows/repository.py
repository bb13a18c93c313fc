"""The DVC repository that flows share: one flow at a time, whatever started it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = Path(".dvc") / "tmp"
# Seconds that a flow waits for another one to end, by default.
PATIENCE = 600.0


class RepositoryHeld(RuntimeError):
    """Another flow holds the repository; the message says which."""


@contextmanager
def hold(folder: Path, name: str, log: Callable[[str], None], *, patience: float = PATIENCE) -> Iterator[None]:
    """Keep every other flow out of the repository in `folder`, until the block ends or this process dies.

    The lock is the kernel's, so a killed process holds it no longer. A flow within a flow must not take it again.
    Raises `RepositoryHeld` after `patience` seconds.
    """
    path = folder / TEMPORARY / "flow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        deadline = time.monotonic() + patience
        said = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = path.read_text() or "another process"
            if time.monotonic() >= deadline:
                raise RepositoryHeld(f"{holder} holds {folder}; run again once it has ended")
            if not said:
                log(f"waiting: {holder} holds {folder}")
                said = True
            time.sleep(min(1.0, patience))
        file.truncate(0)
        file.write(f"{name} (PID {os.getpid()})")
        file.flush()
        yield
