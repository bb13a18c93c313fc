"""MLflow runs: one a result, keyed by a fingerprint of its params, inputs and code."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from elder.errors import DataWarning
from elder.training.checkpoint import Checkpoint
from pipeline.tracking import experiments, recorder
from pipeline.tracking.fingerprints import Reads

CHECKPOINTS = Path(".checkpoints")


class Log:
    """The MLflow run of a result. Without a run, nothing is logged."""

    def __init__(self, run: experiments.Run | recorder.Remote | None, fingerprint: str) -> None:
        self._run = run
        self.fingerprint = fingerprint

    def metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the metrics of the result, or a point of their curves at `step`."""
        if self._run is not None:
            self._run.metrics(metrics, step)

    def artifacts(self, *paths: Path) -> None:
        """Keep a copy of files, or of those in a folder, with the run: tables and figures, not models or pictures.

        They must not change until the run ends. A file of more than `experiments.LARGEST` bytes is left out.
        """
        if self._run is not None:
            self._run.artifacts(paths)


@contextmanager
def run(title: str, params: Mapping[str, Any], reads: Reads) -> Iterator[Log]:
    """Resume the MLflow run of this title, these params and the content of what the stage reads, or create one.

    So a stage that DVC skips creates no run, and a killed stage that is repeated resumes its own. Importing MLflow and
    opening its store takes seconds. Unless this process has imported MLflow already, another one does, while the result
    is being made. An error of that process is raised by the next call of the log, or at the end of the block. Where
    MLflow is not installed, a warning says that nothing is logged.
    """
    flat = dict(_flatten(params))
    identity = json.dumps([title, flat, reads.fingerprint], sort_keys=True)
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
    texts = {name: str(value) for name, value in flat.items()}
    data = {str(path): reads.hashes[path][: experiments.DIGEST] for path in reads.data}
    opening = experiments.Opening(title, texts, fingerprint, data, os.getpid())
    if importlib.util.find_spec("mlflow") is None:
        warnings.warn(f"{title}: MLflow is not installed here, so nothing is logged", DataWarning, stacklevel=3)
        yield Log(None, fingerprint)
        return
    with experiments.opened(opening) if "mlflow" in sys.modules else recorder.opened(opening) as open_run:
        yield Log(open_run, fingerprint)


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
