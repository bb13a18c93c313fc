"""The pipeline as a Prefect flow. Each task is one stage of one cell. DVC is the only cache.

Annotations are no strings here: a runner sends the flow to its process without the names that strings would need.
"""

from pathlib import Path
from typing import Annotated

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from pipeline import REPRO, ROOT
from pipeline.flows import cluster as clusters
from pipeline.flows import commands, flow_runs, graph, matrix, notify, process, repository, source
from pipeline.flows.cluster import Cluster, Engine
from pipeline.flows.commands import RepositoryBusy, StageFailed, of_dvc
from pipeline.flows.publish import champions, publish, since, verdicts

Seconds = Annotated[float, Field(gt=0)]
AtOnce = Annotated[int, Field(ge=1)]


@of_dvc(name="reproduce", task_run_name="{label}")
def reproduce(stage: str, label: str, folder: Path, timeout: float) -> None:
    """`dvc repro --single-item STAGE`, in a process that ends with this task; again later if the repository is busy."""
    # All stages of a flow belong to one repro, which is named after it.
    commands.repro(stage, folder, timeout, get_run_logger().info, {REPRO: f"flow {flow_run.id}"})


@flow(name="train", on_failure=[notify.failed], on_crashed=[notify.failed])
def train(
    folder: str = str(ROOT),
    cells: list[str] = [],  # noqa: B006  Prefect shows the default in its form; it is never changed
    stage_timeout: Seconds = 6 * 3600.0,
    wait: Annotated[float, Field(ge=0)] = 3600.0,
    runner: Engine = "local",
    at_once: AtOnce = 1,
    cluster: Cluster = Cluster(),  # noqa: B008  it is frozen
) -> None:
    """Train, evaluate and register: every stage of dvc.yaml in its order, then the artifacts.

    Only what changed runs. The stages of a matrix are tasks of their own. If one of them fails, the others go on, and
    the flow fails at its end.

    Args:
        folder: The project, with its dvc.yaml.
        cells: The cells of params.yaml to train, such as csmri-least_squares. Empty: all of them. The report is
            written only if every other cell has been trained before.
        stage_timeout: Seconds that one stage may take.
        wait: Seconds to wait while another run uses the project, or for the first worker of a cluster. Then this run is
            refused.
        runner: Who trains the cells: this machine (local), or the workers of Dask or Ray.
        at_once: Cells that are trained at the same time, on this machine. More than one, and every cell on dask or
            ray, runs in a working copy of the project.
        cluster: A cluster elsewhere, and what each cell gets of it.
    """
    root, log = Path(folder).resolve(), get_run_logger()
    flow_runs.begin(root, log.warning)
    groups, selection, site = plan(root, cells, runner, at_once, cluster)
    with repository.hold(root, f"flow run {flow_run.name}", log.warning, patience=wait):
        pictures = source.find(root, selection.sections.get("prepare", {}), source.last(root))
        before = verdicts(root)
        try:
            failures = _run(groups, selection, site, root, stage_timeout, wait)
        except BaseException:  # there may be no time to ask the registry
            _tell_promotions(before, verdicts(root), {})
            raise
        now = champions(root)
        _tell_promotions(before, verdicts(root), now)
        try:
            publish(root, now)
        finally:
            if failures:
                raise StageFailed("; ".join(failures))
        if not cells:
            source.note(root, pictures)


def plan(
    root: Path, cells: list[str], runner: Engine, at_once: int, cluster: Cluster
) -> tuple[list[graph.Group], graph.Selection, clusters.Site | None]:
    """The graph, what of it runs, and where: `None` for the project itself.

    Raises `ValueError` in one line for what `train` can't do.
    """
    groups, sections = graph.read(root)
    return groups, graph.Selection(sections, cells), clusters.site(runner, at_once, cluster, root)


def _run(
    groups: list[graph.Group],
    selection: graph.Selection,
    site: clusters.Site | None,
    folder: Path,
    timeout: float,
    patience: float,
) -> list[str]:
    """Run the graph, its matrix at the site if there is one; what failed, one line each."""
    if site is None:
        return [failure for group in groups for failure in _run_group(group, selection, folder, timeout)]
    before, batches, after = graph.parted(groups)
    failures = [failure for group in before for failure in _run_group(group, selection, folder, timeout)]
    done = before
    for batch in batches:
        ready = [stage for group in done for stage in selection.stages(group)]
        failures += matrix.spread(batch, ready, selection, site, folder, timeout, patience)
        done = done + batch
    return failures + [failure for group in after for failure in _run_group(group, selection, folder, timeout)]


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
    due = matrix.changed(group.name, list(keys), folder, timeout) if len(keys) > 1 else list(keys)
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


def _tell_promotions(before: dict[str, dict], after: dict[str, dict], now: dict[str, int]) -> None:
    """Tell of each new champion. A verdict that DVC has brought back from its cache may be of a former one.

    now: the versions that are champions, by the name of the model.
    """
    log = get_run_logger()
    for cell, verdict in after.items():
        known = before.get(cell, {})
        again = all(verdict.get(key) == known.get(key) for key in ("promoted", "version"))
        if not verdict["promoted"] or again:
            continue
        if superseded := since(verdict, now):
            log.info(f"{cell}: {verdict['told']}; {superseded}")
        elif trouble := notify.tell("promotion", verdict["told"], cell=cell, **verdict):
            log.warning(trouble)
