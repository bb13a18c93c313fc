"""The experiment of a project in MLflow: its store, the runs of stages, and one above them for each `dvc repro`."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elder.errors import UserError
from elder.model import store
from pipeline.tracking import repros

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.data.meta_dataset import MetaDataset

# MLflow takes as long to import as torch, so it is imported where it is used.

# Bytes of a file up to which a run keeps a copy of it.
LARGEST = 20_000_000
# Hexadecimal digits of the hash of a data set; MLflow takes 36 characters.
DIGEST = 32


@dataclass(frozen=True)
class Opening:
    """What a run is of."""

    title: str
    params: Mapping[str, str]
    fingerprint: str  # of the params, inputs and code
    data: Mapping[str, str]  # the hash of each data set that was read, by its path
    pid: int  # of the process that makes the result


class Run:
    """An open run."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def metrics(self, metrics: Mapping[str, float], step: int | None) -> None:
        """Log metrics, at a step of their curves or without one."""
        import mlflow

        mlflow.log_metrics(dict(metrics), step=step, run_id=self.run_id)

    def artifacts(self, paths: Sequence[Path], *, of_any_size: bool = False) -> None:
        """Keep a copy of files, or of those in a folder. A file of more than `LARGEST` bytes may be left out."""
        import mlflow

        for path in paths:
            files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
            for file in files:
                if of_any_size or file.stat().st_size <= LARGEST:
                    mlflow.log_artifact(str(file), path.name if path.is_dir() else None, run_id=self.run_id)


@contextmanager
def opened(opening: Opening) -> Iterator[Run]:
    """Resume the run of this title and fingerprint, or create one.

    It is nested under that of the `dvc repro` that made the result last.
    """
    import mlflow

    client, experiment = _open()
    wanted = f"tags.cell = '{opening.title}' and tags.fingerprint = '{opening.fingerprint}'"
    found = client.search_runs([experiment], wanted, max_results=1)
    existing = found[0].info.run_id if found else None
    stage = opening.title.split()[0]
    tags = {"cell": opening.title, "stage": stage, "fingerprint": opening.fingerprint, **repros.owner(opening.pid)}
    with _repro(client, experiment, opening.pid) as above:
        tags |= {repros.PARENT: above} if above else {}
        name = None if existing else opening.title
        with mlflow.start_run(run_id=existing, run_name=name, tags=None if existing else tags) as active:
            mlflow.set_tags(tags)
            mlflow.log_params(dict(opening.params))
            for path, digest in opening.data.items():
                mlflow.log_input(_dataset(Path(path), digest), stage)
            yield Run(active.info.run_id)


def log_repro(metrics: Mapping[str, float], *paths: Path) -> None:
    """Log what a whole `dvc repro` made to its run, of any size. Does nothing in a stage that was started by hand."""
    if repros.current() is None:
        return
    with _repro(*_open()) as run_id:
        assert run_id is not None
        run = Run(run_id)
        run.metrics(metrics, None)
        run.artifacts(paths, of_any_size=True)


def _open() -> tuple[MlflowClient, str]:
    """A client of the store, and the id of the experiment there. Runs whose process died are ended first."""
    import mlflow

    connect()
    client, experiment = mlflow.MlflowClient(), mlflow.set_experiment(store.EXPERIMENT).experiment_id
    repros.end_dead_runs(client, experiment)
    return client, experiment


def open_existing() -> tuple[MlflowClient, str]:
    """A client of the store, and the id of the experiment there. Raises `UserError` if there is none; it makes none."""
    import mlflow

    store.existing()
    connect()
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(store.EXPERIMENT)
    if found is None:
        raise UserError(f"{mlflow.get_tracking_uri()}: holds no run of elder; run dvc repro")
    return client, found.experiment_id


@contextmanager
def _repro(client: MlflowClient, experiment: str, pid: int | None = None) -> Iterator[str | None]:
    """The id of the run of the `dvc repro` of this stage, owned by process `pid`; None if it was started by hand.

    Its status is that of the latest stage, since no stage knows whether it is the last.
    """
    name = repros.current()
    if name is None:
        yield None
        return
    with locked("repro"):
        run_id = repros.begin(client, experiment, name, pid)
    try:
        yield run_id
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def _dataset(path: Path, digest: str) -> MetaDataset:
    """A folder of data as MLflow names it: by its hash. MLflow does not read it."""
    from mlflow.data.dataset_source_registry import get_dataset_source_from_json
    from mlflow.data.meta_dataset import MetaDataset

    source = get_dataset_source_from_json(json.dumps({"uri": str(path)}), "local")
    return MetaDataset(source, path.name, digest[:DIGEST])


def connect() -> None:
    """Use the store that `elder.model.store` finds, or a new one: SQLite in the project's folder.

    Raises `UserError` for a server that does not answer.
    """
    import mlflow

    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    # A server that goes away in between is given up after some ten seconds, not after four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    uri = store.address() or store.here()
    file = store.database(uri)
    if file is not None:
        with locked():
            if not file.exists():
                # Beside its place and then renamed: killed while MLflow makes the tables, it could not be opened again.
                fresh = file.with_name(f"{file.name}.new")
                fresh.unlink(missing_ok=True)
                _add_experiment(fresh)
                fresh.rename(file)
            elif store.made(file) is None:
                _add_experiment(file)
    store.check(uri)
    mlflow.set_tracking_uri(uri)


def _add_experiment(file: Path) -> None:
    """Add our experiment to a SQLite store, its artifacts beside it; make the store if there is none.

    By default, MLflow takes the folder that the process works in, which is that of the store by chance only.
    """
    import mlflow

    location = store.noted(file.resolve().parent / "mlruns" / store.EXPERIMENT)
    mlflow.MlflowClient(f"sqlite:///{file}").create_experiment(store.EXPERIMENT, artifact_location=location)


@contextmanager
def locked(name: str = "") -> Iterator[None]:
    """Wait until no other process of this machine is in a block of this name of this store."""
    file = store.database(store.address() or "") or store.FILE
    with file.with_name(f"{file.name}.{name}.lock" if name else f"{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
