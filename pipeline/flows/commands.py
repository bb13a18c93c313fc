"""The commands of DVC that flows run, and how they fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from pipeline.flows import process
from pipeline.flows.progress import Progress, drawn
from pipeline.flows.publish import key_of


class RepositoryBusy(RuntimeError):
    """Another DVC process holds the repository."""


class StageFailed(RuntimeError):
    """A stage ended with an error; its last lines say which."""


async def _is_busy(task: Task, run: TaskRun, state: State) -> bool:
    return isinstance(await state.aresult(raise_on_failure=False), RepositoryBusy)


# A task that starts DVC: tried again, for five minutes, while another DVC process holds the repository.
of_dvc = partial(task, cache_policy=NO_CACHE, retries=10, retry_delay_seconds=30, retry_condition_fn=_is_busy)


def run(
    name: str,
    arguments: Sequence[str],
    folder: Path,
    timeout: float,
    *,
    show: Callable[[str], None] = lambda line: None,
    variables: Mapping[str, str] | None = None,
) -> list[str]:
    """The lines of `dvc ARGUMENTS` in `folder`, each also given to `show`.

    variables: of the environment, beside those of this process.

    Raises `RepositoryBusy`, or `StageFailed` with the last lines, both under the name.
    """
    code, lines = process.run(["dvc", *arguments], show, folder=folder, timeout=timeout, variables=variables)
    check(name, code, lines)
    return lines


def repro(
    stage: str, folder: Path, timeout: float, log: Callable[[str], None], variables: Mapping[str, str] | None = None
) -> None:
    """`dvc repro --single-item STAGE`, its progress as an artifact and its other lines to `log`."""
    show = Progress(f"progress-{key_of(stage)}", stage.split("@")[0], log)
    run(stage, ["repro", "--single-item", stage], folder, timeout, show=show, variables=variables)


def status(name: str, stages: Sequence[str], folder: Path, timeout: float) -> list[str]:
    """Those of the stages that DVC would run or restore."""
    lines = run(name, ["status", "--json", *stages], folder, timeout)
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
