"""Run one deployment of the flow when it is due: `python -m pipeline.flows.runner NAME (--cron ... | --every ...)`.

`pipeline.serve` starts this under a supervisor, with PREFECT_API_URL set. One run is executed at a time. Of the runs
that come due meanwhile, only the newest waits. Runs whose process is gone are closed, and do not stay `Running`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from types import FrameType
from typing import NoReturn
from uuid import UUID

import httpx
import psutil
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runner import Runner
from prefect.schedules import Schedule
from prefect.states import Cancelled, Crashed

from pipeline import ROOT
from pipeline.flows import flow_runs, schedule
from pipeline.flows.flow import train

# Seconds that a flow has, after SIGTERM, to end its stage and to report its end.
GRACE = 4.5
# Seconds between two looks at the runs of the deployment.
INTERVAL = 5.0
# Seconds after which a runner without an answer has lost the server. It asks about every 10 s.
SILENCE = 60.0
# Runs in one answer of the server.
PAGE = 200
UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


class ServerLost(RuntimeError):
    """The runner has had no answer for `SILENCE` seconds."""


class PromptRunner(Runner):
    """Prefect's runner, with an end that takes seconds."""

    def handle_sigterm(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """End the flow's process, then this one."""
        end(0)


def end(code: int) -> NoReturn:
    """End the flow's process, then this one, with the exit code.

    Prefect's own end gives a flow 30 s, and multiprocessing then waits for its process without a limit.
    """
    children = flow_processes()
    for child in children:
        child.terminate()
    for child in psutil.wait_procs(children, GRACE)[1]:
        child.kill()
    sys.stdout.flush()
    os._exit(code)


async def serve(name: str, when: Schedule) -> NoReturn:
    """Close what an earlier process of this deployment left, then run what is due, until this process ends.

    SIGTERM ends it. So does a server that has not answered for `SILENCE` seconds.
    """
    # A pause that is left behind by a shutdown would outlive the next start.
    runner = PromptRunner(name=name, pause_on_shutdown=False, limit=1)
    async with get_client() as client:
        await refuse_that_of_another_folder(client, name)
    deployment = await runner.aadd_flow(train, name=name, schedule=when, paused=False, parameters={"folder": str(ROOT)})
    async with get_client() as client:
        await close(client, await runs(client, deployment, UNFINISHED))
        missed = flow_runs.due(await runs(client, deployment, [StateType.SCHEDULED]))
        await skip(client, missed, "due while nothing served it")
        watching = asyncio.create_task(watch(runner, client, deployment))
        running = asyncio.create_task(runner.start())
        await asyncio.wait([watching, running], return_when=asyncio.FIRST_COMPLETED)
        for task in (watching, running):
            if task.done() and (error := task.exception()):
                print(f"serve: the runner gave up: {cause(error)}", file=sys.stderr, flush=True)
        end(1)


async def refuse_that_of_another_folder(client: PrefectClient, name: str) -> None:
    """End this process if the server has this deployment for another project: each would close the other's runs."""
    called = f"{train.name}/{name}"
    try:
        there = (await client.read_deployment_by_name(called)).parameters.get("folder")
    except ObjectNotFound:
        return
    if there != str(ROOT):
        print(
            f"serve: {called} on this server is that of {there}; choose another --name, or, if nothing serves it "
            f"there, remove it by prefect deployment delete {called}",
            file=sys.stderr,
            flush=True,
        )
        end(1)


def cause(error: BaseException) -> BaseException:
    """The first error of a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def watch(runner: Runner, client: PrefectClient, deployment: UUID) -> NoReturn:
    """Keep at most one run due, and none `Running` without a process.

    Raises `ServerLost` once the runner has had no answer for `SILENCE` seconds. Prefect's runner itself would stop
    asking after three failures, and then wait for its flow.
    """
    while True:
        await asyncio.sleep(INTERVAL)
        if runner.last_polled and (datetime.now(UTC) - runner.last_polled).total_seconds() > SILENCE:
            raise ServerLost(f"the Prefect server at {client.api_url} has not answered for {SILENCE:g} s")
        with contextlib.suppress(httpx.HTTPError, PrefectHTTPStatusError):
            # A run may end or begin between two questions: it is alive if it was so before or after.
            before = flow_processes()
            running = await runs(client, deployment, [StateType.RUNNING])
            alive = 1 if before or flow_processes() else 0
            await close(client, running[alive:])
            waiting = flow_runs.due(await runs(client, deployment, [StateType.SCHEDULED]))
            await skip(client, waiting[1:], "due again before it could start")


async def runs(client: PrefectClient, deployment: UUID, types: list[StateType]) -> list[FlowRun]:
    """The runs of the deployment in one of these states, the newest first."""
    found: list[FlowRun] = []
    while True:
        page = await client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types))),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=PAGE,
            offset=len(found),
        )
        found += page
        if len(page) < PAGE:
            return found


async def close(client: PrefectClient, dead: Iterable[FlowRun]) -> None:
    """Set runs without a process to their last state, and their tasks to `Crashed`, and tell of it."""
    for run in dead:
        state = flow_runs.last_state(run)
        tasks = await client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
            task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=UNFINISHED))),
        )
        for task in tasks:
            await client.set_task_run_state(task.id, Crashed(message=flow_runs.REASON), force=True)
        await client.set_flow_run_state(run.id, state, force=True)
        print(f"serve: run {run.name} is now {state.name}: {flow_runs.REASON}", flush=True)
        if trouble := flow_runs.tell_of(run, state):
            print(f"serve: {trouble}", flush=True)


async def skip(client: PrefectClient, missed: Iterable[FlowRun], reason: str) -> None:
    """Cancel runs that are due and have not started."""
    for run in missed:
        await client.set_flow_run_state(run.id, Cancelled(message=f"skipped: {reason}"))
        print(f"serve: run {run.name} is skipped: {reason}", flush=True)


def flow_processes() -> list[psutil.Process]:
    """The children of this process that run a flow: at most one, beside a helper of multiprocessing."""
    commands = {child: _command(child) for child in psutil.Process().children()}
    return [child for child, command in commands.items() if command and "resource_tracker" not in command]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--cron")
    parser.add_argument("--timezone", default="UTC")
    parser.add_argument("--every", type=float)
    arguments = parser.parse_args()
    when = schedule.cron(arguments.cron, arguments.timezone) if arguments.cron else schedule.every(arguments.every)
    asyncio.run(serve(arguments.name, when))


if __name__ == "__main__":
    main()
