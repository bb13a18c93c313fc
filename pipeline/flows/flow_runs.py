"""What a flow run owes, when it begins, to the worker that started it and to the runs before it."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO
from uuid import UUID

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Crashed

from pipeline.flows import notify, process

OPEN = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
MARKS = Path(".dvc") / "tmp" / "runs"
# Runs in one question to the server.
PAGE = 100
REASON = "its process ended without a report"
# How long the start of a process may take, from the worker's claim of a run to its mark.
STARTING = timedelta(minutes=5)
# The locks of this process.
_held: list[IO[str]] = []


def begin(folder: Path, log: Callable[[str], None]) -> None:
    """Begin a run in the project in `folder`: have it end with its starter, and close the runs that were killed before.

    A run of a deployment ends with the worker or runner that started it. A run by hand has no such starter.

    Open runs whose process was killed are set to `Crashed`, with what they started, and told of as failures: their own
    hook could not. One that was being cancelled is set to `Cancelled`. Every run holds a lock on a file of
    its own, in `MARKS` of the project, for as long as its process lives. A limit of Prefect's can't tell: its leases
    run out on a busy machine, or while the server is away, and end runs that live. A run is closed on the server that
    knows it. A folder that is no DVC repository keeps no marks.

    Of a deployment, open runs without a mark are closed too: they were killed before they began. Of its runs that came
    due while none could start, the newest stays, and the others are skipped.
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
                    _close(client, run, log)
                (marks / str(run.id)).unlink(missing_ok=True)
        if deployment.id is not None:
            _catch_up(client, UUID(deployment.id), folder, log)


def due(scheduled: Iterable[FlowRun]) -> list[FlowRun]:
    """Those that the schedule made, and whose time has come. A run that a person asked for is none of them."""
    now = datetime.now(UTC)
    return [
        run for run in scheduled if run.auto_scheduled and run.expected_start_time and run.expected_start_time < now
    ]


def _catch_up(client: SyncPrefectClient, of: UUID, folder: Path, log: Callable[[str], None]) -> None:
    """Close the runs of the deployment that were killed before they began, and skip all that are due but the newest."""
    here, latest = DeploymentFilter(id=DeploymentFilterId(any_=[of])), FlowRunSort.EXPECTED_START_TIME_DESC
    for run in client.read_flow_runs(deployment_filter=here, flow_run_filter=_in(OPEN), sort=latest, limit=PAGE):
        # A run in another folder has its mark there.
        elsewhere = Path(run.parameters.get("folder", folder)).resolve() != folder
        begun = elsewhere or (folder / MARKS / str(run.id)).exists() or (folder / MARKS / f"{run.id}.new").exists()
        if not begun and run.state and datetime.now(UTC) - run.state.timestamp > STARTING:
            _close(client, run, log)
    scheduled = _in([StateType.SCHEDULED])
    waiting = due(client.read_flow_runs(deployment_filter=here, flow_run_filter=scheduled, sort=latest, limit=PAGE))
    for run in waiting[1:]:
        client.set_flow_run_state(run.id, Cancelled(message="skipped: due again before it could start"))
        log(f"run {run.name} is skipped: due again before it could start")


def _in(types: list[StateType]) -> FlowRunFilter:
    """The runs in one of these states."""
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)))


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


def _close(client: SyncPrefectClient, run: FlowRun, log: Callable[[str], None]) -> None:
    """Set a run whose process is gone to its last state, with what it started, and tell of it."""
    state = last_state(run)
    _end(client, run, state)
    log(f"run {run.name} is now {state.name}: {REASON}")
    if trouble := tell_of(run, state):
        log(trouble)


def last_state(run: FlowRun) -> State[None]:
    """The last state of a run whose process is gone: `Cancelled` if that was under way, else `Crashed`."""
    return Cancelled(message=REASON) if run.state_type == StateType.CANCELLING else Crashed(message=REASON)


def tell_of(run: FlowRun, state: State[None]) -> str | None:
    """Tell of a run that was closed here, if it crashed. Returns what went wrong with that, in one line."""
    if state.type != StateType.CRASHED:
        return None
    return notify.tell("failure", f"run {run.name}: crashed: {REASON}", run=str(run.id))


def _end(client: SyncPrefectClient, run: FlowRun, state: State[None]) -> None:
    below = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=OPEN)),
    )
    for inner in client.read_flow_runs(flow_run_filter=below):
        _end(client, inner, state)
    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=OPEN))),
    )
    for task in tasks:
        client.set_task_run_state(task.id, Crashed(message=REASON), force=True)
    client.set_flow_run_state(run.id, state, force=True)
