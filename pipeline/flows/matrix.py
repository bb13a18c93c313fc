"""The matrix away from the project: its stages run in working copies, several at once, and the results are gathered."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import httpx
from prefect import get_client, get_run_logger
from prefect.exceptions import PrefectException
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed

from pipeline import REPRO
from pipeline.flows import cluster, commands, copies, graph, lockfile, process
from pipeline.flows.commands import of_dvc

STORE = "MLFLOW_TRACKING_URI"


@of_dvc(name="work", task_run_name="{label}")
def work(label: str, job: copies.Job) -> copies.Delivery:
    """Run a job on the worker that takes it."""
    return copies.run(job, get_run_logger().info)


@of_dvc(name="changed", task_run_name="what changed in {name}")
def changed(name: str, stages: Sequence[str], folder: Path, timeout: float) -> list[str]:
    """Those of the stages that DVC would run or restore: one look at all of them, in place of a `dvc repro` of each."""
    return commands.status(name, stages, folder, timeout)


@of_dvc(name="gather", task_run_name="gather {name}")
def gather(name: str, delivery: copies.Delivery, sharing: copies.Sharing, folder: Path, timeout: float) -> None:
    """Take over what a working copy made: entries of dvc.lock, the files that they name, and runs of MLflow."""
    stages = list(delivery.locked)
    if stages:
        lockfile.merge(folder, delivery.locked)
        fetch = ["pull", "--remote", sharing.remote] if sharing.remote else ["checkout"]
        commands.run(name, [*fetch, "--force", *stages], folder, timeout)
    if delivery.store:
        packed = folder / ".dvc" / "tmp" / f"{name}.tar.gz"
        try:
            packed.write_bytes(delivery.store)
            collect(folder, timeout, packed)
        finally:
            packed.unlink(missing_ok=True)


def collect(folder: Path, timeout: float, *packed: Path) -> None:
    """Bring packed MLflow stores into that of the project, which then has a run of this flow."""
    command = [sys.executable, "-m", "pipeline.collect", "--repro", _name(), *map(str, packed)]
    code, lines = process.run(command, lambda line: None, folder=folder, timeout=timeout)
    commands.check("collect", code, lines)


def spread(
    batch: Sequence[graph.Group],
    ready: Sequence[str],
    selection: graph.Selection,
    site: cluster.Site,
    folder: Path,
    timeout: float,
    patience: float,
) -> list[str]:
    """Run a batch of the matrix, a job for each entry that changed; what failed, one line each.

    Each result is gathered as soon as it is there. A job that fails drops its entry; the others go on.

    ready: the stages before this batch, which have results.
    patience: seconds to wait for the first worker of a cluster.
    """
    log = get_run_logger()
    over, title = batch[0].over, ", ".join(group.name for group in batch)
    stages = {key: [group.stage(key) for group in batch] for key in selection.keys(over)}
    every = [stage for names in stages.values() for stage in names]
    found = set(changed(title, every, folder, timeout)) if every else set()
    due = {key: [name for name in names if name in found] for key, names in stages.items() if found & set(names)}
    if len(due) < len(stages):
        log.info(f"{title}: {len(stages) - len(due)} of {len(stages)} unchanged")
    if not due:
        return []
    if site.sharing.remote:
        commands.run("push", ["push", "--remote", site.sharing.remote, *ready], folder, timeout)
    if shared_store():
        collect(folder, timeout)  # two stages that begin at once would each make a run of this flow
    jobs = _jobs(over, stages, due, ready, site, folder, timeout)
    failures: list[str] = []
    with temporary_settings({PREFECT_API_URL: _api()}), site.make() as runner:
        try:
            futures: dict[PrefectFuture[copies.Delivery], str] = {}
            for key, job in jobs.items():
                with cluster.submitting(site.options):
                    label = f"{key}: {', '.join(stage.split('@')[0] for stage in job.stages)}"
                    futures[runner.submit(work, {"label": label, "job": job})] = key
            cluster.await_workers(runner, site, patience)
            for future in as_completed(list(futures)):
                key = futures[future]
                told = _take(future, jobs[key], folder, timeout)
                if told:
                    failures.append(told)
                    selection.drop(over, key)
        except BaseException:
            process.close_all()  # before the runner waits for its threads
            raise
    return failures + _left(over, jobs, selection, title, folder, timeout)


def shared_store() -> bool:
    """Whether MLflow's store is a server, to which all workers may write. A SQLite file takes one writer."""
    uri = os.environ.get(STORE, "")
    return "://" in uri and not uri.startswith(("sqlite:", "file:"))


def _jobs(
    over: str,
    stages: dict[str, list[str]],
    due: dict[str, list[str]],
    ready: Sequence[str],
    site: cluster.Site,
    folder: Path,
    timeout: float,
) -> dict[str, copies.Job]:
    """The job of every entry. Once a stage is due, those after it may be: they run too, and DVC skips what it can."""
    packed, locked = copies.snapshot(folder), lockfile.read(folder)
    variables = {**site.variables, REPRO: _name()}
    if shared_store():
        variables[STORE] = os.environ[STORE]
    found = {}
    for key, missing in due.items():
        names = stages[key][stages[key].index(missing[0]) :]
        kept = {*ready, *stages[key]} - set(missing)  # DVC takes seconds to write what all other cells have
        found[key] = copies.Job(
            name=f"{over}-{key}",
            stages=tuple(names),
            copies=str(site.copies),
            sharing=site.sharing,
            timeout=timeout,
            snapshot=packed,
            locked={stage: entry for stage, entry in locked.items() if stage in kept},
            variables=variables,
            own_store=not shared_store(),
        )
    return found


def _take(future: PrefectFuture[copies.Delivery], job: copies.Job, folder: Path, timeout: float) -> str:
    """Gather what a job made. Returns what went wrong with it, in one line; empty if nothing did."""
    told = ""
    try:
        delivery = future.result()
    except copies.JobFailed as error:
        told, delivery = str(error), error.delivery
    except Exception as error:  # of the engine, if the worker died
        told = f"{job.name}: {type(error).__name__}: {' '.join(str(error).split())}"
        _close(future.task_run_id, told)
        return told
    try:
        gather(job.name, delivery, job.sharing, folder, timeout)
    except (commands.StageFailed, commands.RepositoryBusy, process.TimedOut) as error:
        # The copy stays: the next run takes its results from there.
        told = "; ".join(filter(None, (told, f"gather {job.name}: {error}")))
    if not told:
        shutil.rmtree(Path(job.copies) / job.name, ignore_errors=True)  # where this machine sees it
    return told


def _close(run: UUID, told: str) -> None:
    """Set a task whose worker died to `Crashed`: nobody else reports its end."""
    with contextlib.suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
        state = client.read_task_run(run).state
        if state is None or not state.is_final():
            client.set_task_run_state(run, Crashed(message=told), force=True)


def _left(
    over: str, jobs: dict[str, copies.Job], selection: graph.Selection, title: str, folder: Path, timeout: float
) -> list[str]:
    """The stages that DVC would run in spite of what was gathered, one line each; their entries are dropped."""
    gathered = {stage: key for key in selection.keys(over) if key in jobs for stage in jobs[key].stages}
    left = changed(title, list(gathered), folder, timeout) if gathered else []
    for stage in left:
        selection.drop(over, gathered[stage])
    return [f"{stage}: its settings, code or data changed while it ran; run again" for stage in left]


def _name() -> str:
    """The name of this flow's run in MLflow."""
    return f"flow {flow_run.id}"


def _api() -> str:
    """The address of Prefect's server, for processes that would start one of their own otherwise."""
    with get_client(sync_client=True) as client:
        return str(client.api_url).rstrip("/")
