"""The pipeline as a Prefect flow. Each task is one stage. DVC is the only cache."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import yaml
from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import deployment, flow_run
from prefect.tasks import Task

from pipeline import REPRO, ROOT
from pipeline.flows import process, repository


class RepositoryBusy(RuntimeError):
    """Another DVC process holds the repository."""


class StageFailed(RuntimeError):
    """A stage ended with an error; its last lines say which."""


async def _is_busy(task: Task, run: TaskRun, state: State) -> bool:
    return isinstance(await state.aresult(raise_on_failure=False), RepositoryBusy)


@task(
    name="reproduce",
    task_run_name="{stage}",
    cache_policy=NO_CACHE,
    retries=10,
    retry_delay_seconds=30,
    retry_condition_fn=_is_busy,
)
def reproduce(stage: str, folder: Path, timeout: float) -> None:
    """`dvc repro --single-item STAGE`, in a process that ends with this task; again later if the repository is busy."""
    logger = get_run_logger()
    # All stages of a flow belong to one repro, which is named after it.
    named = {REPRO: f"flow {flow_run.id}"}
    command = ["dvc", "repro", "--single-item", stage]
    code, lines = process.run(command, logger.info, folder=folder, timeout=timeout, variables=named)
    if code == 0:
        return
    if any("is busy, it is being blocked by" in line or "Unable to acquire lock" in line for line in lines):
        raise RepositoryBusy(f"{stage}: another DVC process holds the repository; trying again")
    raise StageFailed(f"{stage}: exit code {code}: {' | '.join(lines[-5:])}")


@task(name="publish", cache_policy=NO_CACHE)
def publish(folder: Path) -> None:
    """The table and the verdict of the gate of every cell, the figures of every problem, and the report."""
    reports = folder / "reports"
    for registered in sorted(reports.glob("cells/*/registered.json")):
        cell, key = registered.parent, registered.parent.name.replace("_", "-")
        metrics = json.loads((cell / "metrics.json").read_text())
        verdict = json.loads(registered.read_text())
        create_table_artifact([{"method": name, **row} for name, row in metrics.items()], key=f"{key}-table")
        create_markdown_artifact(verdict["told"], key=f"{key}-verdict")
    for picture in sorted((reports / "figures").glob("*.png")):
        data = base64.b64encode(picture.read_bytes()).decode()
        create_image_artifact(f"data:image/png;base64,{data}", key=picture.stem.replace("_", "-"))
    create_link_artifact((reports / "index.html").resolve().as_uri(), link_text="the report", key="report")


@flow(name="elder")
def pipeline(folder: str = str(ROOT), stage_timeout: float = 6 * 3600.0) -> None:
    """Every stage of dvc.yaml in its order, then the artifacts. stage_timeout: seconds that one stage may take."""
    if deployment.id is not None:  # started by a runner or a worker, and not by hand
        process.end_with_parent()
    root = Path(folder)
    with repository.hold(root, f"flow run {flow_run.name}", get_run_logger().warning):
        for stage in stages(root):
            reproduce(stage, root, stage_timeout)
        publish(root)


def stages(folder: Path) -> list[str]:
    """The names in dvc.yaml, which lists them in the order of the graph; a matrix goes by one name."""
    return list(yaml.safe_load((folder / "dvc.yaml").read_text())["stages"])
