"""Bring the MLflow runs of working copies into the store of this project.

  python -m pipeline.collect --repro "flow 01234567" .dvc/tmp/cells-inpaint-red.tar.gz ...

A working copy logs to a SQLite store of its own, since such a store takes one writer. Each file is such a store,
packed: `mlflow.db` and `mlruns`. A run that is here already, of the same title and fingerprint, is brought up to date,
as if its stage had been repeated here. The run of the repro is made if it is not there; without files, that is all.
"""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elder import command
from elder.errors import UserError
from elder.model import store
from pipeline.runs import every
from pipeline.tracking import experiments, repros

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Metrics, params and tags that MLflow takes at once.
METRICS, PARAMS = 1000, 100
ENDED = ("FINISHED", "FAILED", "KILLED")


def collect(repro: str, packed: Sequence[Path]) -> int:
    """Bring the runs of packed stores here, and have a run of the repro. The number of runs that came."""
    import mlflow

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    experiments.connect()
    client, experiment = mlflow.MlflowClient(), mlflow.set_experiment(store.EXPERIMENT).experiment_id
    _repro(client, experiment, repro, "FINISHED")
    return sum(_bring(path, client, experiment) for path in packed)


def _bring(packed: Path, client: MlflowClient, experiment: str) -> int:
    """Bring the runs of one packed store; their number."""
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(packed) as file:
                file.extractall(folder, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"{packed}: no packed store ({error})") from None
        database = Path(folder) / store.FILE
        store.settle(database)  # its artifacts were elsewhere
        source = mlflow.MlflowClient(f"sqlite:///{database}")
        found = source.get_experiment_by_name(store.EXPERIMENT)
        there = list(every(source, found.experiment_id)) if found else []
        above = {run.info.run_id: run for run in there if "repro" in run.data.tags}
        results = [run for run in reversed(there) if "fingerprint" in run.data.tags]
        for run in results:
            parent = above.get(run.data.tags.get(repros.PARENT, ""))
            repro = parent and _repro(client, experiment, parent.data.tags["repro"], parent.info.status)
            _copy(source, run, client, experiment, repro)
        return len(results)


def _repro(client: MlflowClient, experiment: str, name: str, status: str) -> str:
    """The id of the run of a repro here, which has the status of its latest stage."""
    with experiments.locked("repro"):
        run_id = repros.begin(client, experiment, name)
    client.set_terminated(run_id, status if status in ENDED else "KILLED")
    return run_id


def _copy(source: MlflowClient, run: Run, client: MlflowClient, experiment: str, parent: str | None) -> None:
    """Bring one run: tags, params, curves, inputs, files and its end. A newer run of the same result stays as it is."""
    from mlflow.entities import Param, RunTag

    tags = {**run.data.tags, **({repros.PARENT: parent} if parent else {})}
    condition = f"tags.cell = '{tags['cell']}' and tags.fingerprint = '{tags['fingerprint']}'"
    found = client.search_runs([experiment], condition, max_results=1)
    if found and (found[0].info.end_time or 0) >= (run.info.end_time or run.info.start_time):
        return
    if found:
        run_id = found[0].info.run_id
    else:
        made = client.create_run(experiment, start_time=run.info.start_time, run_name=run.info.run_name)
        run_id = made.info.run_id
    for group in _parts([RunTag(key, value) for key, value in tags.items()], PARAMS):
        client.log_batch(run_id, tags=group)
    for group in _parts([Param(key, value) for key, value in run.data.params.items()], PARAMS):
        client.log_batch(run_id, params=group)
    points = [point for key in run.data.metrics for point in source.get_metric_history(run.info.run_id, key)]
    for group in _parts(points, METRICS):
        client.log_batch(run_id, metrics=group)
    if run.inputs is not None:
        client.log_inputs(run_id, datasets=run.inputs.dataset_inputs)
    with tempfile.TemporaryDirectory() as folder:
        if source.list_artifacts(run.info.run_id):
            client.log_artifacts(run_id, source.download_artifacts(run.info.run_id, "", folder))
    status = run.info.status if run.info.status in ENDED else "KILLED"
    client.set_terminated(run_id, status, run.info.end_time)


def _parts(items: list[Any], most: int) -> list[list[Any]]:
    """The items in lists of at most `most`."""
    return [items[start : start + most] for start in range(0, len(items), most)]


def main() -> None:
    """Bring the runs of the packed stores that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", nargs="*", type=Path, help="a packed store")
    parser.add_argument("--repro", required=True, metavar="NAME", help="the repro to which this belongs")
    arguments = parser.parse_args()

    sys.exit(command.run("collect", lambda: print(f"runs: {collect(arguments.repro, arguments.packed)}")))


if __name__ == "__main__":
    main()
