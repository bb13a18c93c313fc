"""The DVC repository that flows share: one flow at a time, and files that a kill has damaged are healed before a run.

DVC writes `dvc.lock` and `.dvc/tmp/rwlock` in place. A kill or a full disk at that moment leaves a file that DVC cannot
read, and every later command fails. An entry of `rwlock` whose process was killed can name a number that another
program has by now, and DVC then waits for it without end.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import psutil

TEMPORARY = Path(".dvc") / "tmp"
# Where working copies lie, unless a setting says otherwise; see `pipeline.flows.copies`.
COPIES = TEMPORARY / "copies"
# Beside the copies, the DVC cache that they share where a remote takes the place of the project's.
CACHE = "cache"
# Seconds by which the start of a process and the time of a file may differ, since they come from two clocks.
SLACK = 2.0
# Seconds that a flow waits for another one to end, by default.
PATIENCE = 600.0
# Seconds in which who asks whether a lock is free has asked.
INSTANT = 0.2

# In `TEMPORARY`: the lock of the flow that uses the repository.
FLOW_LOCK = "flow.lock"


class RepositoryHeld(RuntimeError):
    """Another flow holds the repository; the message says which."""


@contextmanager
def hold(folder: Path, name: str, log: Callable[[str], None], *, patience: float = PATIENCE) -> Iterator[None]:
    """Keep every other flow out of the repository in `folder`, until the block ends or this process dies; `heal` it.

    The lock is the kernel's, so a killed process holds it no longer. A flow within a flow must not take it again.

    Args:
        name: who holds it, for the messages of others; they also see the number of this process.
        log: is told of a wait, and of what was mended.
        patience: seconds to wait for whoever holds it.

    Raises `RepositoryHeld` after `patience` seconds.
    """
    with alone(folder / TEMPORARY / FLOW_LOCK, folder, name, log, patience):
        for line in heal(folder):
            log(line)
        yield


@contextmanager
def alone(path: Path, folder: Path, name: str, log: Callable[[str], None], patience: float) -> Iterator[None]:
    """Hold the lock in the file `path`, as `hold` does; folder: what messages say is held.

    Raises `RepositoryHeld` if another process holds it for longer than `patience` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        # Who looks whether it is free holds it for an instant (`holder`).
        deadline = time.monotonic() + max(patience, INSTANT)
        said = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = path.read_text() or "another process"
            if time.monotonic() >= deadline:
                raise RepositoryHeld(f"{holder} holds {folder}; run again once it has ended")
            if not said and patience > INSTANT:
                log(f"waiting: {holder} holds {folder}")
                said = True
            time.sleep(min(1.0, max(patience, INSTANT / 4)))
        file.truncate(0)
        file.write(f"{name} (PID {os.getpid()})")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # or the next to be refused would hear of this one


def holder(folder: Path) -> str:
    """Who holds the repository in `folder`; empty if nobody does."""
    try:
        with (folder / TEMPORARY / FLOW_LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return ""
    except FileNotFoundError:
        return ""
    except BlockingIOError:
        return (folder / TEMPORARY / FLOW_LOCK).read_text() or "another process"


def heal(folder: Path) -> list[str]:
    """Mend `dvc.lock` and `.dvc/tmp/rwlock` in `folder`. One line for each thing that was mended.

    A `dvc.lock` that DVC would not read is moved to `.dvc/tmp`. The next `dvc repro` writes it again, from the run
    cache, without running a stage whose result is there. A broken `rwlock` is removed, and so are entries whose process
    is dead, or began after the entry was written, or is no DVC command. What a DVC command writes at this moment is
    left alone.
    """
    # DVC takes most of a second to import, and flows are imported to be listed and deployed too.
    from dvc.lock import LockError

    temporary = folder / TEMPORARY
    temporary.mkdir(parents=True, exist_ok=True)
    told: list[str] = []
    for name, mend, path in (
        ("rwlock.lock", _mend_rwlock, temporary / "rwlock"),
        ("lock", _mend_lock_file, folder / "dvc.lock"),
    ):
        try:
            with locked(folder, name):
                told += mend(path, temporary)
        except LockError:
            told.append(f"{path} was not looked at: another DVC command holds {temporary / name}")
    return told


def locked(folder: Path, name: str) -> AbstractContextManager[Any]:
    """Hold one of DVC's own locks. It raises DVC's `LockError` if a DVC command holds it."""
    from dvc.lock import make_lock

    temporary = folder / TEMPORARY
    return make_lock(str(temporary / name), tmp_dir=str(temporary), hardlink_lock=_hardlinks(folder))


def _hardlinks(folder: Path) -> bool:
    """Whether DVC is set to lock by hard links, as on file systems without locks."""
    from dvc.config import Config

    return bool(Config(str(folder / ".dvc"))["core"].get("hardlink_lock", False))


def _mend_lock_file(path: Path, temporary: Path) -> list[str]:
    from dvc.exceptions import DvcException
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils import strictyaml

    if not path.exists():
        return []
    try:
        strictyaml.load(str(path), COMPILED_LOCKFILE_SCHEMA)
        return []
    except DvcException:
        aside = temporary / f"dvc.lock.{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        path.replace(aside)
        return [f"{path} was broken and is now {aside}; DVC writes it again from its run cache"]


def _mend_rwlock(path: Path, temporary: Path) -> list[str]:
    from dvc.rwlock import SCHEMA
    from voluptuous import Invalid

    try:
        entries = cast(dict[str, Any], SCHEMA(json.loads(path.read_text())))
    except FileNotFoundError:
        return []
    except (ValueError, Invalid):
        path.unlink()
        return [f"{path} was broken and is removed"]
    written = path.stat().st_mtime
    writers = {name: entry for name, entry in entries["write"].items() if _lives(entry, written)}
    readers = {name: [entry for entry in found if _lives(entry, written)] for name, found in entries["read"].items()}
    kept = {"write": writers, "read": {name: found for name, found in readers.items() if found}}
    gone = _processes(entries) - _processes(kept)
    if not gone:
        return []
    new = temporary / "rwlock.new"
    new.write_text(json.dumps(kept))
    new.replace(path)
    return [f"{path} named PID {pid} ({command}), which runs no more; removed" for pid, command in sorted(gone)]


def _processes(entries: Mapping[str, Mapping[str, Any]]) -> set[tuple[int, str]]:
    """Number and command of every process in an rwlock."""
    found = [*entries["write"].values(), *(entry for readers in entries["read"].values() for entry in readers)]
    return {(entry["pid"], entry["cmd"]) for entry in found}


def _lives(entry: Mapping[str, Any], written: float) -> bool:
    """Whether the process of an entry runs. Another program may have its number by now.

    written: when the rwlock was last written, in seconds since the epoch. A process that began later made no entry.
    """
    try:
        process = psutil.Process(entry["pid"])
        if process.status() == psutil.STATUS_ZOMBIE or process.create_time() > written + SLACK:
            return False
        command = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # of another user: DVC may know more
        return True
    return "dvc" in command or entry["cmd"] in command
