"""What a run that a deployment has started owes to its worker, and to the run before it."""

from __future__ import annotations

from collections.abc import Callable
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
REASON = "its process ended without a report"


def end_with_starter() -> None:
    """Have this process end with the worker or runner that started it. Does nothing for a run by hand."""
    if deployment.id is not None:
        process.end_with_parent()


def close_dead(log: Callable[[str], None]) -> None:
    """Set the other open runs of this run's deployment, and what they started, to `Crashed`.

    A deployment that runs once at a time has no other open run, unless its process was killed. Does nothing for a run
    that no deployment made, or for a deployment that may run twice at once.
    """
    if deployment.id is None:
        return
    with get_client(sync_client=True) as client:
        limit = client.read_deployment(UUID(deployment.id)).global_concurrency_limit
        if limit is None or limit.limit != 1:
            return
        mine = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[UUID(deployment.id)]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=OPEN)),
        )
        for run in client.read_flow_runs(flow_run_filter=mine):
            if str(run.id) != flow_run.id:
                _crash(client, run)
                log(f"run {run.name} is now Crashed: {REASON}")


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
