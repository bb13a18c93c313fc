"""MLflow runs: one a result, keyed by a fingerprint of its params, inputs and code, below one for each `dvc repro`."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

from elder.errors import DataWarning, UserError
from elder.model import store
from elder.training.checkpoint import Checkpoint
from pipeline import repros
from pipeline.fingerprints import Reads

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.data.meta_dataset import MetaDataset

# MLflow takes as long to import as torch. Only a stage that logs imports it, and only once its settings are checked.
CHECKPOINTS = Path(".checkpoints")
# Bytes of a file up to which a run keeps a copy of it.
LARGEST = 20_000_000
# Hexadecimal digits of the hash of a data set; MLflow takes 36 characters.
DIGEST = 32


class Log:
    """One MLflow run, open. Without MLflow, run_id is `None`, and nothing is logged."""

    def __init__(self, run_id: str | None, fingerprint: str) -> None:
        self.run_id = run_id
        self.fingerprint = fingerprint

    def metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the metrics of the result, or a point of their curves at `step`."""
        if self.run_id is None:
            return
        import mlflow

        mlflow.log_metrics(dict(metrics), step=step, run_id=self.run_id)

    def artifacts(self, *paths: Path) -> None:
        """Keep a copy of files, or of those in a folder, with the run: tables and figures, not models or pictures.

        A file of more than `LARGEST` bytes is left out.
        """
        if self.run_id is None:
            return
        import mlflow

        for path in paths:
            files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
            for file in files:
                if file.stat().st_size <= LARGEST:
                    mlflow.log_artifact(str(file), path.name if path.is_dir() else None, run_id=self.run_id)


@contextmanager
def run(title: str, params: Mapping[str, Any], reads: Reads) -> Iterator[Log]:
    """Resume the MLflow run of this title, these params and the content of what the stage reads, or create one.

    So a stage that DVC skips creates no run, and a killed stage that is repeated resumes its own. The run is nested
    under that of the `dvc repro` that made the result last. Where MLflow is not installed, a warning says that nothing
    is logged.
    """
    flat = dict(_flatten(params))
    identity = json.dumps([title, flat, reads.fingerprint], sort_keys=True)
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
    if importlib.util.find_spec("mlflow") is None:
        warnings.warn(f"{title}: MLflow is not installed here, so nothing is logged", DataWarning, stacklevel=3)
        yield Log(None, fingerprint)
        return
    import mlflow

    client, experiment = _open()
    found = client.search_runs(
        [experiment], f"tags.cell = '{title}' and tags.fingerprint = '{fingerprint}'", max_results=1
    )
    existing = found[0].info.run_id if found else None
    tags = {"cell": title, "stage": title.split()[0], "fingerprint": fingerprint, **repros.owner()}
    with _repro(client, experiment) as above:
        tags |= {repros.PARENT: above} if above else {}
        name = None if existing else title
        with mlflow.start_run(run_id=existing, run_name=name, tags=None if existing else tags) as active:
            mlflow.set_tags(tags)
            mlflow.log_params(flat)
            for path in reads.data:
                mlflow.log_input(_dataset(path, reads.hashes[path]), tags["stage"])
            yield Log(active.info.run_id, fingerprint)


def log_repro(metrics: Mapping[str, float], *paths: Path) -> None:
    """Log what a whole `dvc repro` made to its run. Does nothing in a stage that was started by hand."""
    if repros.current() is None:
        return
    with _repro(*_open()) as run_id:
        assert run_id is not None
        log = Log(run_id, "")
        log.metrics(metrics)
        log.artifacts(*paths)


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
def _repro(client: MlflowClient, experiment: str) -> Iterator[str | None]:
    """The id of the run of the `dvc repro` of this stage; None if it was started by hand.

    Its status is that of the latest stage, since no stage knows whether it is the last.
    """
    name = repros.current()
    if name is None:
        yield None
        return
    with locked("repro"):
        run_id = repros.begin(client, experiment, name)
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


@contextmanager
def training(
    title: str, params: Mapping[str, Any], reads: Reads, *, steps: int, every: int
) -> Iterator[tuple[Log, Reporter, Checkpoint]]:
    """A run, what reports each of its `steps` steps, and its checkpoint, which is written every `every` steps.

    They belong to these params, these inputs and this code. A killed training that is started again resumes from the
    checkpoint. When the block ends without an error, the checkpoint is deleted.
    """
    with (
        run(title, params, reads) as log,
        resumable(log, title, every) as checkpoint,
        Reporter(log, steps, title) as report,
    ):
        yield log, report, checkpoint


@contextmanager
def resumable(log: Log, title: str, every: int) -> Iterator[Checkpoint]:
    """The checkpoint of the work of this run. When the block ends without an error, it is deleted."""
    checkpoint = Checkpoint(CHECKPOINTS / f"{title.replace(' ', '-')}-{log.fingerprint}", every)
    with checkpoint.held():
        yield checkpoint
    shutil.rmtree(checkpoint.folder)


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


class Reporter:
    """Shows a training while it runs: a progress bar on the terminal, and points of its curves in MLflow."""

    def __init__(self, log: Log, steps: int, title: str) -> None:
        self._log = log
        self._bar = tqdm(total=steps, desc=title, mininterval=1.0, dynamic_ncols=True)
        self._every = max(1, steps // 50)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Move the progress bar, and log the metrics of some fifty steps and of every validation."""
        if step % self._every == 0 or "val_psnr" in metrics:
            self._log.metrics(metrics, step)
        shown = {k: f"{v:.4g}" for k, v in metrics.items() if k in ("loss", "val_psnr", "weight", "sigma")}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value
