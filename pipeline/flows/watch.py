"""Start a training when the pictures have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from pipeline import ROOT
from pipeline.flows import flow_runs, graph, notify, process, repository, source
from pipeline.flows.cluster import Cluster, Engine
from pipeline.flows.commands import StageFailed
from pipeline.flows.flow import AtOnce, Seconds, train


@flow(name="watch", on_failure=[notify.failed], on_crashed=[notify.failed])
def watch(
    folder: str = str(ROOT),
    quiet: Annotated[float, Field(ge=0)] = 60.0,
    retry: Annotated[float, Field(ge=0)] = 24 * 3600.0,
    stage_timeout: Seconds = 6 * 3600.0,
    wait: Annotated[float, Field(ge=0)] = 3600.0,
    runner: Engine = "local",
    at_once: AtOnce = 1,
    cluster: Cluster = Cluster(),  # noqa: B008  it is frozen
) -> State:
    """Start a training if the data source has changed since the last training that succeeded.

    The data source is what `prepare` in params.yaml names: the folder, and the list of splits if there is one. Its hash
    is of names and contents. While another run uses the project, nothing is decided.

    Args:
        folder: The project, with its dvc.yaml.
        quiet: Seconds without a change before a training starts, so that it does not read half of what is being copied.
        retry: Seconds before a training that failed is tried again on the same files.
        stage_timeout: Seconds that one stage may take.
        wait: Seconds to wait for another run that begins meanwhile, or for the first worker of a cluster.
        runner: Who trains the cells, as in `train`.
        at_once: Cells that are trained at the same time, on this machine.
        cluster: A cluster elsewhere, and what each cell gets of it.
    """
    root, log = Path(folder).resolve(), get_run_logger()
    flow_runs.begin(root, log.warning)
    if holder := repository.holder(root):
        log.info(f"{holder} uses the project; the next look decides")
        return Completed(message=f"nothing decided while {holder} uses the project")
    settings = graph.sections(root).get("prepare", {})
    last = source.last(root)
    found = source.find(root, settings, last)
    why = decide(found, last, quiet) or failed_before(found, source.last_failure(root), retry)
    log.info(f"{root / str(settings.get('folder', ''))}: {why or 'changed, so a training starts'}")
    if why is not None:
        return Completed(message=why)
    # Its failure is told once, by this flow.
    training = train.with_options(
        on_failure=[notify.left_to_the_flow_above], on_crashed=[notify.left_to_the_flow_above]
    )
    try:
        training(folder, stage_timeout=stage_timeout, wait=wait, runner=runner, at_once=at_once, cluster=cluster)
    except (StageFailed, process.TimedOut) as error:
        source.note_failure(root, found)
        return Failed(message=f"the training failed: {error}")
    return Completed(message=f"trained on {len(found.files)} files")


def decide(found: source.Source, last: source.Source | None, quiet: float) -> str | None:
    """Why no training starts; `None` if one does."""
    if not found.files:
        return "no files to watch; set prepare.source: folder, and put pictures there"
    if last is not None and found.digest == last.digest:
        return f"{len(found.files)} files, unchanged since the last training"
    if found.age() < quiet:
        return f"changed {found.age():.0f} s ago; left alone until nothing changes for {quiet:g} s"
    return None


def failed_before(found: source.Source, failure: source.Failure | None, retry: float) -> str | None:
    """Why a training that failed is not tried again yet; `None` if it is, or if none failed on these files."""
    if failure is None or failure.digest != found.digest or failure.age() >= retry:
        return None
    return (
        f"the training on these {len(found.files)} files failed {failure.age():.0f} s ago; tried again after "
        f"{retry:g} s, or when they change"
    )
