"""The pipeline as a Prefect flow. Each task is one stage of one cell. DVC is the only cache.

Annotations are no strings here: a runner sends the flow to its process without the names that strings would need.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.tasks import Task
from pydantic import Field

from pipeline import REPRO, ROOT
from pipeline.flows import deployed, graph, notify, process, repository, source
from pipeline.flows.progress import Progress, drawn
from pipeline.flows.publish import key_of, publish, verdicts

Seconds = Annotated[float, Field(gt=0)]


class RepositoryBusy(RuntimeError):
    """Another DVC process holds the repository."""


class StageFailed(RuntimeError):
    """A stage ended with an error; its last lines say which."""


async def _is_busy(task: Task, run: TaskRun, state: State) -> bool:
    return isinstance(await state.aresult(raise_on_failure=False), RepositoryBusy)


# A task that starts DVC: tried again, for five minutes, while another DVC process holds the repository.
of_dvc = partial(task, cache_policy=NO_CACHE, retries=10, retry_delay_seconds=30, retry_condition_fn=_is_busy)


@of_dvc(name="reproduce", task_run_name="{label}")
def reproduce(stage: str, label: str, folder: Path, timeout: float) -> None:
    """`dvc repro --single-item STAGE`, in a process that ends with this task; again later if the repository is busy."""
    show = Progress(f"progress-{key_of(stage)}", stage.split("@")[0], get_run_logger().info)
    # All stages of a flow belong to one repro, which is named after it.
    named = {REPRO: f"flow {flow_run.id}"}
    command = ["dvc", "repro", "--single-item", stage]
    code, lines = process.run(command, show, folder=folder, timeout=timeout, variables=named)
    check(stage, code, lines)


@of_dvc(name="changed", task_run_name="what changed in {name}")
def changed(name: str, stages: Sequence[str], folder: Path, timeout: float) -> list[str]:
    """Those of the stages that DVC would run or restore: one look at all of them, in place of a `dvc repro` of each."""
    code, lines = process.run(["dvc", "status", "--json", *stages], lambda line: None, folder=folder, timeout=timeout)
    check(name, code, lines)
    found = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    return [stage for stage in stages if stage in found]


def check(stage: str, code: int, lines: Sequence[str]) -> None:
    """Raise the exception that the exit code and the lines of DVC ask for."""
    if code == 0:
        return
    if any("is busy, it is being blocked by" in line or "Unable to acquire lock" in line for line in lines):
        raise RepositoryBusy(f"{stage}: another DVC process holds the repository; trying again")
    told = [line for line in lines if not drawn(line)]
    raise StageFailed(f"{stage}: exit code {code}: {' | '.join(told[-5:])}")


@flow(name="train", on_failure=[notify.failed], on_crashed=[notify.failed])
def train(
    folder: str = str(ROOT),
    cells: list[str] = [],  # noqa: B006  Prefect shows the default in its form; it is never changed
    stage_timeout: Seconds = 6 * 3600.0,
    wait: Annotated[float, Field(ge=0)] = 3600.0,
) -> None:
    """Train, evaluate and register: every stage of dvc.yaml in its order, then the artifacts.

    Only what changed runs. The stages of a matrix are tasks of their own. If one of them fails, the others go on, and
    the flow fails at its end.

    Args:
        folder: The project, with its dvc.yaml.
        cells: The cells of params.yaml to train, such as csmri-least_squares. Empty: all of them. The report is
            written only if every other cell has been trained before.
        stage_timeout: Seconds that one stage may take.
        wait: Seconds to wait while another run uses the project. Then this one is refused.
    """
    deployed.end_with_starter()
    root, log = Path(folder).resolve(), get_run_logger()
    groups, sections = graph.read(root)
    selection = graph.Selection(sections, cells)
    deployed.close_dead(root, log.warning)
    with repository.hold(root, f"flow run {flow_run.name}", log.warning, patience=wait):
        pictures = source.find(root, sections.get("prepare", {}), source.last(root))
        before = verdicts(root)
        try:
            failures = [failure for group in groups for failure in _run_group(group, selection, root, stage_timeout)]
        finally:
            _tell_promotions(before, verdicts(root))
        if failures:
            raise StageFailed("; ".join(failures))
        publish(root)
        if not cells:
            source.note(root, pictures)


def _run_group(group: graph.Group, selection: graph.Selection, folder: Path, timeout: float) -> list[str]:
    """Run the stages of a group; what failed, one line each. A stage on which all others depend raises instead."""
    log = get_run_logger()
    if not group.over:
        if group.name == "report" and not (selection.whole or _complete(selection, folder)):
            log.info("report: left out, since it needs results of every cell")
        else:
            reproduce(group.name, group.name, folder, timeout)
        return []
    keys = {group.stage(key): key for key in selection.keys(group.over)}
    due = changed(group.name, list(keys), folder, timeout) if len(keys) > 1 else list(keys)
    if len(due) < len(keys):
        log.info(f"{group.name}: {len(keys) - len(due)} of {len(keys)} unchanged")
    failures = []
    for stage in due:
        try:
            reproduce(stage, selection.label(group, keys[stage]), folder, timeout)
        except (StageFailed, RepositoryBusy, process.TimedOut) as error:
            failures.append(str(error))
            selection.drop(group.over, keys[stage])
    return failures


def _complete(selection: graph.Selection, folder: Path) -> bool:
    """Whether every cell has results, and none has failed."""
    trained = {path.parent.name for path in (folder / "reports" / "cells").glob("*/registered.json")}
    return not selection.dropped and set(selection.cells) <= trained


def _tell_promotions(before: dict[str, dict], after: dict[str, dict]) -> None:
    for cell, verdict in after.items():
        if verdict["promoted"] and verdict != before.get(cell):
            trouble = notify.tell("promotion", verdict["told"], cell=cell, **verdict)
            if trouble:
                get_run_logger().warning(trouble)
