"""Working copies of the repository, in which stages run apart from it: on a cluster, or several at once on one machine.

A copy has files, a dvc.lock and an MLflow store of its own, so no two workers write the same one. What workers share is
a DVC cache, whose entries are named by their content, or a DVC remote.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.flows import commands, graph, lockfile, process, repository

# The code of the stages, and what says how they hang together.
PARTS = ("elder", "pipeline", "stages", "dvc.yaml", "params.yaml", ".dvc/config", ".dvcignore")
# The section of params.yaml whose files the copies do without: the pictures. Their stages read what `prepare` makes.
PICTURES = "prepare"
STORE, ARTIFACTS = "mlflow.db", "mlruns"
# Links to the cache where the file system has them: the data of a copy then takes no place.
LINKS = "reflink,hardlink,symlink,copy"


@dataclass(frozen=True)
class Sharing:
    """Through what a copy gets its data and gives its results.

    cache: the DVC cache of the project, as the workers see it. remote, url: a DVC remote that takes its place.
    """

    cache: str
    remote: str = ""
    url: str = ""

    def config(self, copies: Path) -> str:
        """The settings of DVC in a copy. With a remote, the copies of a machine have one cache, beside them."""
        cache = str(copies / repository.CACHE) if self.remote else self.cache
        lines = ["[core]", "    no_scm = true", "[cache]", f"    dir = {cache}", f"    type = {LINKS}"]
        lines += [f"['remote \"{self.remote}\"']", f"    url = {self.url}"] if self.remote else []
        return "\n".join(lines) + "\n"

    def check(self) -> None:
        """Raise `commands.StageFailed` on a machine that does not see the cache."""
        if not self.remote and not Path(self.cache).is_dir():
            raise commands.StageFailed(
                f"{platform.node()} does not see the DVC cache {self.cache}; share its folder, or set cluster.remote"
            )


@dataclass(frozen=True)
class Job:
    """Some stages to run in a working copy, one after the other.

    name: of the copy, a folder in `copies`. snapshot: see `snapshot`. locked: the entries of dvc.lock, without those of
    stages that have to run. variables: of the environment of the stages. own_store: whether the copy has an MLflow
    store of its own, rather than that of a server. timeout: seconds for each stage.
    """

    name: str
    stages: tuple[str, ...]
    copies: str
    sharing: Sharing
    timeout: float
    snapshot: bytes = field(repr=False)
    locked: Mapping[str, Any] = field(repr=False)
    variables: Mapping[str, str]
    own_store: bool


@dataclass(frozen=True)
class Delivery:
    """What comes back from a copy: entries of dvc.lock of the stages that ended well, and its MLflow store, packed."""

    locked: Mapping[str, Any] = field(default_factory=dict, repr=False)
    store: bytes = field(default=b"", repr=False)


class JobFailed(commands.StageFailed):
    """A stage in a copy failed; `delivery` is what the stages before it made."""

    def __init__(self, told: str, delivery: Delivery) -> None:
        super().__init__(told, delivery)
        self.told, self.delivery = told, delivery

    def __str__(self) -> str:
        """What the stage said."""
        return self.told


def run(job: Job, log: Callable[[str], None]) -> Delivery:
    """Run the stages of a job in its copy, which is made, or used again as a killed job has left it.

    Raises `JobFailed` for the first stage that fails, and `commands.StageFailed` if another process holds the copy, or
    if this machine does not see the cache.
    """
    job.sharing.check()
    folder = Path(job.copies) / job.name
    log(f"{', '.join(job.stages)}: in {folder} on {platform.node()}")
    try:
        with repository.hold(folder, f"the work on {job.name}", log, patience=job.timeout):
            _fill(folder, job)
            variables = dict(job.variables)
            if job.own_store:
                variables["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / STORE}"
            done: list[str] = []
            try:
                for stage in job.stages:
                    commands.repro(stage, folder, job.timeout, log, variables)
                    if job.sharing.remote:
                        commands.run(stage, ["push", "--remote", job.sharing.remote, stage], folder, job.timeout)
                    done.append(stage)
            except (commands.StageFailed, process.TimedOut) as error:
                raise JobFailed(str(error), _delivery(folder, done, job)) from None
            return _delivery(folder, done, job)
    except repository.RepositoryHeld as error:
        raise commands.StageFailed(f"{job.name}: {error}") from None


def snapshot(root: Path) -> bytes:
    """The files of a project that its stages need beside their data, packed: code, settings, and what these name."""
    named = [path for path in (root / part for part in PARTS) if path.exists()]
    settings = {name: values for name, values in graph.sections(root).items() if name != PICTURES}
    named += [path for text in _strings(settings) if (path := _inside(root, text)) is not None]
    files = sorted({file for path in named for file in _files(path)})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", dereference=True) as packed:
        for file in files:
            packed.add(file, file.relative_to(root).as_posix())
    return buffer.getvalue()


def _fill(folder: Path, job: Job) -> None:
    """Bring the files and the data of a copy to those of the job. Checkpoints and the MLflow store stay."""
    for part in PARTS:  # what the project has no longer must not stay
        if (folder / part).is_file():
            (folder / part).unlink()
        shutil.rmtree(folder / part, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(job.snapshot)) as packed:
        packed.extractall(folder, filter="data")
    (folder / ".dvc" / "config.local").write_text(job.sharing.config(Path(job.copies)))
    lockfile.write(folder, job.locked)
    fetch = ["pull", "--remote", job.sharing.remote] if job.sharing.remote else ["checkout"]
    commands.run(job.name, [*fetch, "--force", "--allow-missing", "--with-deps", *job.stages], folder, job.timeout)


def _delivery(folder: Path, done: Sequence[str], job: Job) -> Delivery:
    entries = lockfile.read(folder)
    store = b""
    if job.own_store and (folder / STORE).exists():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
            packed.add(folder / STORE, STORE)
            if (folder / ARTIFACTS).exists():
                packed.add(folder / ARTIFACTS, ARTIFACTS)
        store = buffer.getvalue()
    return Delivery({stage: entries[stage] for stage in done}, store)


def _strings(values: object) -> Iterator[str]:
    """Every string in nested settings."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _strings(value)
    elif isinstance(values, Sequence):
        for value in values:
            yield from _strings(value)


def _inside(root: Path, text: str) -> Path | None:
    """The file or folder of the project that a setting names, also as FILE:INDEX; `None` if it names none."""
    for name in (text, text.rpartition(":")[0]):
        path = Path(os.path.normpath(root / name))
        try:
            if root in path.parents and path.exists():
                return path
        except (OSError, ValueError):  # no name of a file
            continue
    return None


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in path.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            yield file
