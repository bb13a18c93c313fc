"""Whether the pictures that a training reads have changed since the last one that succeeded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the last successful training of a project was made from: a file of JSON, below the project's folder.
RECORD = Path(".prefect") / "trained.json"
# The last training that a change started and that failed.
FAILURE = Path(".prefect") / "failed.json"


@dataclass(frozen=True)
class Source:
    """The files of a data source, by their names relative to the project.

    Of each, the size in bytes, the time of its last change in ns, and the SHA-256 of its content. The time is the
    ctime, which a copy does not bring along.
    """

    files: dict[str, tuple[int, int, str]]

    @property
    def digest(self) -> str:
        """A hash of the names and the contents; not of the times."""
        listed = [f"{name}\0{content}\n" for name, (_, _, content) in sorted(self.files.items())]
        return hashlib.sha256("".join(listed).encode()).hexdigest()

    def age(self) -> float:
        """Seconds since a file was changed last; infinite without files."""
        latest = max((changed for _, changed, _ in self.files.values()), default=None)
        return float("inf") if latest is None else time.time() - latest / 1e9


@dataclass(frozen=True)
class Failure:
    """A training that failed: the digest of its data source, and when it failed, in seconds since the epoch."""

    digest: str
    when: float

    def age(self) -> float:
        """Seconds since then."""
        return time.time() - self.when


def find(folder: Path, settings: Mapping[str, Any], known: Source | None = None) -> Source:
    """The data source that the section `prepare` of params.yaml names; without files for the built-in photographs.

    known: an earlier state. The content of a file is read again only if its size or its time differs.
    """
    before = {} if known is None else known.files
    files = {}
    for path in _paths(folder, settings):
        name = os.path.relpath(path, folder)
        old = before.get(name)
        # A file may vanish during the look, as the temporary ones of a copy do.
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            same = old is not None and old[:2] == (stat.st_size, stat.st_ctime_ns)
            files[name] = old if same and old else (stat.st_size, stat.st_ctime_ns, _content(path))
    return Source(files)


def last(folder: Path) -> Source | None:
    """What the last successful training read; `None` if there was none, or if its record can't be read."""
    try:
        files = json.loads((folder / RECORD).read_text())
        return Source(
            {name: (int(size), int(changed), str(content)) for name, (size, changed, content) in files.items()}
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def note(folder: Path, source: Source) -> None:
    """Record what a successful training read. The file is replaced at once: a kill leaves the one before."""
    _write(folder / RECORD, source.files)


def last_failure(folder: Path) -> Failure | None:
    """The last training that a change started and that failed; `None` if there is none, or no record of it."""
    try:
        record = json.loads((folder / FAILURE).read_text())
        return Failure(str(record["digest"]), float(record["when"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def note_failure(folder: Path, source: Source) -> None:
    """Record that the training on this data source has just failed."""
    _write(folder / FAILURE, {"digest": source.digest, "when": time.time()})


def _write(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(record))
    fresh.replace(path)


def _paths(folder: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    if settings.get("source") != "folder":
        return
    yield from sorted(_below(folder / str(settings.get("folder", ""))))
    split = folder / str(settings.get("split", ""))
    if split.is_file():  # a list of names, each with its split
        yield split


def _below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files that `prepare` sees, see `elder.io.list_sources`; flows import nothing of the library.

    Links to folders are followed, but not back to a folder above.
    """
    here = folder.resolve()
    if here in above or not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.is_dir():
            if not path.name.startswith("."):
                yield from _below(path, above | {here})
        elif path.is_file() and not path.name.startswith("."):
            yield path


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
