"""What a flow run owes, when it begins, to the worker that started it and to the runs before it."""

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
# Runs in one question to the server.
PAGE = 100
REASON = "its process ended without a report"
# The locks of this process.
_held: list[IO[str]] = []


def begin(folder: Path, log: Callable[[str], None]) -> None:
    """Begin a run in the project in `folder`: have it end with its starter, and close the runs that were killed before.

    A run of a deployment ends with the worker or runner that started it. A run by hand has no such starter.

    Open runs whose process was killed are set to `Crashed`, with what they started. Every run holds a lock on a file of
    its own, in `MARKS` of the project, for as long as its process lives. A limit of Prefect's can't tell: its leases
    run out on a busy machine, or while the server is away, and end runs that live. A run is closed on the server that
    knows it. A folder that is no DVC repository keeps no marks.
    """
    if deployment.id is not None:
        process.end_with_parent()
    if not (folder / ".dvc").is_dir():
        return
    marks = folder / MARKS
    _mark(marks, str(flow_run.id))
    dead = [mark.name for mark in sorted(marks.iterdir()) if not mark.suffix and _is_dead(mark)]
    with get_client(sync_client=True) as client:
        for first in range(0, len(dead), PAGE):
            ids = FlowRunFilterId(any_=[UUID(name) for name in dead[first : first + PAGE]])
            for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(id=ids), limit=PAGE):
                if run.state_type in OPEN:
                    _crash(client, run)
                    log(f"run {run.name} is now Crashed: {REASON}")
                (marks / str(run.id)).unlink(missing_ok=True)


def _mark(marks: Path, name: str) -> None:
    """Hold the lock of a run until this process ends."""
    marks.mkdir(parents=True, exist_ok=True)
    new = marks / f"{name}.new"
    file = new.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    new.rename(marks / name)  # nobody sees it without its lock
    _held.append(file)


def _is_dead(mark: Path) -> bool:
    """Whether the run that held this lock holds it no more."""
    try:
        with mark.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):  # another run has closed it; or it lives
        return False
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
