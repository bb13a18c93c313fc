"""Remove old runs, versions of models that nothing names, and checkpoints that nothing resumes from.

  python -m pipeline.prune                     shows what would go, and removes nothing
  python -m pipeline.prune --yes               removes it
  python -m pipeline.prune --days 30 --repros 10 --versions 5

What goes:
  runs          that are older than --days, or belong to none of the last --repros. The latest run of each result stays,
                since DVC may have skipped it ever since; so do runs of kept versions, and those that still run.
  versions      without an alias, beyond the last --versions of them. Champion and challenger stay, and so does every
                version that has been champion: `python -m pipeline.rollback` may want it.
  checkpoints   that no training has touched for --days, or whose training has ended.
  copies        of the project, in which cells failed, and that nothing has used for --days.

Results in models/ and reports/ belong to DVC; `dvc gc` removes old ones. The files of runs and versions are deleted at
once, and their rows by `mlflow gc`.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from elder import command
from elder.errors import UserError
from elder.training.checkpoint import Checkpoint
from pipeline.flows import repository
from pipeline.runs import every
from pipeline.tracking import experiments, logs, repros

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

DAY = 24 * 3600.0
# What goes, one and several of it.
KINDS = {"run": "runs", "version": "versions", "checkpoint": "checkpoints", "copy": "copies"}


@dataclass(frozen=True)
class Limits:
    """What stays: runs and checkpoints of the last `days`, runs of the last `repros`, `versions` without an alias."""

    days: float
    repros: int
    versions: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise UserError(f"--{name} {value:g}: must be 0 or more")


@dataclass(frozen=True)
class Item:
    """What can go."""

    kind: str  # one of KINDS
    name: str
    reason: str
    remove: Callable[[], None]


def find(client: MlflowClient, experiment: str, limits: Limits, now: float) -> list[Item]:
    """What the limits leave nothing of. now: in seconds since 1970."""
    versions, left = _versions(client, limits)
    runs = list(every(client, experiment))
    kept = [*_checkpoints(runs, limits, now), *_copies(limits, now)]
    return [*versions, *_runs(client, runs, left, limits, now), *kept]


def remove(items: Sequence[Item]) -> list[str]:
    """Remove each of them that lets itself be removed. Returns what the others said, one line each."""
    from mlflow.exceptions import MlflowException

    refused = []
    for item in items:
        try:
            item.remove()
        except (UserError, MlflowException, OSError) as error:
            refused.append(f"{item.kind} {item.name} was not removed: {' '.join(str(error).split())}")
    return refused


def _runs(
    client: MlflowClient, runs: Sequence[Run], versions: Sequence[ModelVersion], limits: Limits, now: float
) -> Iterator[Item]:
    """The runs that can go. runs: the latest first. versions: those that stay.

    A result that is made again keeps its run, with its start. So the end says how old it is.
    """
    results = [run for run in runs if "cell" in run.data.tags]
    latest: dict[str, str] = {}
    for run in sorted(results, key=lambda run: (run.info.status != "FINISHED", -_last(run))):
        latest.setdefault(run.data.tags["cell"], run.info.run_id)
    stay = {*latest.values(), *(version.run_id for version in versions)}
    stay |= {run.info.run_id for run in runs if run.info.status == "RUNNING"}
    stay |= {run.data.tags.get(repros.PARENT) for run in runs if run.info.run_id in stay}
    made = [run.info.run_id for run in runs if "repro" in run.data.tags]
    beyond = set(made[limits.repros :])
    for run in runs:
        if run.info.run_id in stay or not {"cell", "repro"} & run.data.tags.keys():
            continue
        old = now - _last(run) > limits.days * DAY
        if old or {run.info.run_id, run.data.tags.get(repros.PARENT)} & beyond:
            reason = f"older than {limits.days:g} days" if old else f"of none of the last {limits.repros} repros"
            when = f"{datetime.fromtimestamp(_last(run), UTC):%Y-%m-%d %H:%M}"
            yield Item("run", f"{run.info.run_name}, {when}", reason, partial(_remove_run, client, run))


def _last(run: Run) -> float:
    """When a run ended, or began if it has no end, in seconds since the epoch."""
    return (run.info.end_time or run.info.start_time) / 1000


def _versions(client: MlflowClient, limits: Limits) -> tuple[list[Item], list[ModelVersion]]:
    """The versions that can go, and those that stay."""
    go: list[Item] = []
    stay: list[ModelVersion] = []
    for model in client.search_registered_models("name LIKE 'elder-%'", max_results=1000):
        found = sorted(client.search_model_versions(f"name = '{model.name}'"), key=lambda v: -int(v.version))
        named = _named(client, model.name)
        old = [version for version in found if int(version.version) not in named][limits.versions :]
        stay += [version for version in found if version not in old]
        reason = f"no alias, never champion, beyond the last {limits.versions} of these"
        go += [Item("version", f"{model.name} {v.version}", reason, partial(_remove_version, client, v)) for v in old]
    return go, stay


def _named(client: MlflowClient, name: str) -> set[int]:
    """The versions of a model that have an alias, or have been champion, or were rolled back by hand."""
    from pipeline.registry import gate

    aliases = client.get_registered_model(name).aliases.values()
    rolled_back = [v.version for v in client.search_model_versions(f"name = '{name}'") if gate.ROLLED_BACK in v.tags]
    return {*map(int, (*aliases, *rolled_back)), *gate.past_champions(client, name)}


def _checkpoints(runs: Sequence[Run], limits: Limits, now: float) -> Iterator[Item]:
    """The folders of checkpoints that can go."""
    ended = {run.data.tags.get("fingerprint") for run in runs if run.info.status == "FINISHED"}
    for folder in sorted(path for path in logs.CHECKPOINTS.glob("*") if path.is_dir()):
        touched = _touched(folder)
        finished = folder.name.rpartition("-")[2] in ended
        if finished or now - touched > limits.days * DAY:
            reason = "its training has ended" if finished else f"untouched for {limits.days:g} days"
            yield Item("checkpoint", folder.name, reason, partial(_remove_checkpoint, folder))


def _copies(limits: Limits, now: float) -> Iterator[Item]:
    """The working copies of cells that can go; that of a cell that ended well is gone already."""
    for folder in sorted(
        path for path in repository.COPIES.glob("*") if path.is_dir() and path.name != repository.CACHE
    ):
        # A run writes its name into the lock when it begins.
        old = now - _touched(folder, folder / repository.TEMPORARY) > limits.days * DAY
        if old and not repository.holder(folder):
            yield Item("copy", folder.name, f"unused for {limits.days:g} days", partial(shutil.rmtree, folder))


def _touched(*folders: Path) -> float:
    """When one of the folders, or an entry of them, was changed last, in seconds since the epoch."""
    times = [0.0]
    for path in (*folders, *(entry for folder in folders if folder.is_dir() for entry in folder.iterdir())):
        with contextlib.suppress(FileNotFoundError):  # a training has just replaced it
            times.append(path.stat().st_mtime)
    return max(times)


def _remove_run(client: MlflowClient, run: Run) -> None:
    """Remove a run with its files, and models that it logged but that never became a version."""
    for model in client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"):
        _remove_model(client, model.model_id)
    client.delete_run(run.info.run_id)
    _delete(client, run.info.artifact_uri)


def _remove_version(client: MlflowClient, version: ModelVersion) -> None:
    """Remove a version with its files, unless it has got an alias meanwhile, or another version has the same files."""
    name = version.name
    with experiments.locked(name):
        if int(version.version) in _named(client, name):
            raise UserError(f"{name} {version.version}: has an alias now")
        others = [v for v in client.search_model_versions(f"name = '{name}'") if v.version != version.version]
        client.delete_model_version(name, version.version)
    if version.model_id and version.model_id not in {other.model_id for other in others}:
        _remove_model(client, version.model_id)


def _remove_model(client: MlflowClient, model_id: str) -> None:
    files = client.get_logged_model(model_id).artifact_location
    client.delete_logged_model(model_id)
    _delete(client, files)


def _remove_checkpoint(folder: Path) -> None:
    """Raises `UserError` if a training holds it."""
    with Checkpoint(folder, 1).held():
        shutil.rmtree(folder)


def _delete(client: MlflowClient, uri: str | None) -> None:
    """Delete the files of a run or a model.

    A store in a file notes absolute paths. In a copy of a project they lead to the files of the original, so what does
    not lie beside the store is left alone.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if uri is None:
        return
    where, store = urlparse(uri), client.tracking_uri
    if where.scheme not in ("", "file"):
        get_artifact_repository(uri).delete_artifacts()
    elif store.startswith("sqlite:///"):
        folder = Path(unquote(where.path)).resolve()
        if folder.is_relative_to(Path(store.removeprefix("sqlite:///")).resolve().parent):
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # MLflow puts artifacts into a folder of their own
                folder.parent.rmdir()


def main() -> None:
    """Show what can go; with --yes, remove it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--days", type=float, default=90, help="that runs, checkpoints and copies stay (default: %(default)s)"
    )
    parser.add_argument("--repros", type=int, default=20, metavar="N", help="whose runs stay (default: %(default)s)")
    parser.add_argument(
        "--versions", type=int, default=10, metavar="N", help="without an alias that stay (default: %(default)s)"
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--dry-run", action="store_true", help="only show what would go: the default")
    chosen.add_argument("--yes", action="store_true", help="remove it")
    arguments = parser.parse_args()

    def work() -> None:
        limits = Limits(arguments.days, arguments.repros, arguments.versions)
        items = find(*experiments.open_existing(), limits, time.time())
        for item in items:
            print(f"{item.kind:<11}{item.name:<50}  {item.reason}")
        counts = Counter(item.kind for item in items)
        told = ", ".join(f"{counts[kind]} {kinds if counts[kind] != 1 else kind}" for kind, kinds in KINDS.items())
        if not arguments.yes:
            print(f"would go: {told}" + "; --yes removes them" * bool(items))
        elif refused := remove(items):
            raise UserError("; ".join(refused))
        else:
            print(f"removed: {told}")

    sys.exit(command.run("prune", work))


if __name__ == "__main__":
    main()
