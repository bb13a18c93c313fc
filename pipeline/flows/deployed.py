"""What a run that a deployment has started owes to its worker, and to the run before it."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import IO
from uuid import UUID

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.runtime import deployment, flow_run
from prefect.states import Crashed

from pipeline.flows import process

OPEN = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
MARKS = Path(".dvc") / "tmp" / "runs"
REASON = "its process ended without a report"
# The locks of this process.
_held: list[IO[str]] = []


def end_with_starter() -> None:
    """Have this process end with the worker or runner that started it. Does nothing for a run by hand."""
    if deployment.id is not None:
        process.end_with_parent()


def close_dead(folder: Path, log: Callable[[str], None]) -> None:
    """Set the open runs of this run's deployment whose process was killed, and what they started, to `Crashed`.

    Every run holds a lock on a file of its own, in `MARKS` of the project, for as long as its process lives. A limit of
    Prefect's can't tell: its leases run out on a busy machine, or while the server is away, and end runs that live.
    Does nothing for a run that no deployment made.
    """
    if deployment.id is None:
        return
    _mark(folder / MARKS, str(flow_run.id))
    with get_client(sync_client=True) as client:
        mine = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[UUID(deployment.id)]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=OPEN)),
        )
        for run in client.read_flow_runs(flow_run_filter=mine):
            if str(run.id) != flow_run.id and _is_dead(folder / MARKS / str(run.id)):
                _crash(client, run)
                log(f"run {run.name} is now Crashed: {REASON}")


def _mark(marks: Path, name: str) -> None:
    """Hold the lock of a run until this process ends."""
    marks.mkdir(parents=True, exist_ok=True)
    new = marks / f"{name}.new"
    file = new.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    new.rename(marks / name)  # nobody sees it without its lock
    _held.append(file)


def _is_dead(mark: Path) -> bool:
    """Whether a run has held its lock, and holds it no more. The mark is then removed."""
    try:
        with mark.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):  # it has not begun, or runs elsewhere; or it lives
        return False
    mark.unlink(missing_ok=True)
    return True


def _crash(client: SyncPrefectClient, run: FlowRun) -> None:
    below = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=OPEN)),
    )
    for inner in client.read_flow_runs(flow_run_filter=below):
        _crash(client, inner)
    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=OPEN))),
    )
    for task in tasks:
        client.set_task_run_state(task.id, Crashed(message=REASON), force=True)
    client.set_flow_run_state(run.id, Crashed(message=REASON), force=True)
