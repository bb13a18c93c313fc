"""One MLflow run for each `dvc repro` or flow, above the runs of its stages; and runs whose process died."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from pipeline import REPRO

if TYPE_CHECKING:  # MLflow takes as long to import as torch
    from mlflow import MlflowClient

# DVC sets it for each stage, and not for itself.
DVC_STAGE = "DVC_STAGE"
LOCK = Path("dvc.lock")
PACKAGES = ("torch", "mlflow", "dvc")
# The tag by which MLflow nests runs.
PARENT = "mlflow.parentRunId"
# Seconds by which the noted start of a process may differ, since clocks are set.
SLACK = 2.0


def current() -> str | None:
    """A name of the `dvc repro` or flow that started this process; None if it was started by hand.

    A flow runs `dvc repro` once for each stage, so it names itself in the environment. Else the name is that of the
    process of DVC: the nearest one above this process without the variable that DVC sets for its stages.
    """
    if named := os.environ.get(REPRO):
        return named.replace("'", "")  # which would end a string in MLflow's filters
    if DVC_STAGE not in os.environ:
        return None
    try:
        above = (process for process in psutil.Process().parents() if DVC_STAGE not in process.environ())
        dvc = next(above, None)
        return None if dvc is None else f"{platform.node()} {dvc.pid} {dvc.create_time():.2f}"
    except psutil.Error:  # a process of another user, or one that has ended
        return None


def begin(client: MlflowClient, experiment: str, name: str, pid: int | None = None) -> str:
    """The id of the run of the repro `name`, RUNNING and owned by process `pid`, this one if `None`.

    Its first stage that logs makes it.
    """
    found = client.search_runs([experiment], f"tags.repro = '{name}'", max_results=1)
    if not found:
        tags = {"repro": name, **owner(pid), **state()}
        title = f"repro {tags['commit'][:7]}" if "commit" in tags else "repro"
        return client.create_run(experiment, run_name=title, tags=tags).info.run_id
    run_id = found[0].info.run_id
    for key, value in owner(pid).items():
        client.set_tag(run_id, key, value)
    client.update_run(run_id, "RUNNING")
    return run_id


def owner(pid: int | None = None) -> dict[str, str]:
    """The process that makes a result, this one if `None`, as tags of the runs of its result."""
    process = psutil.Process(pid)
    return {"host": platform.node(), "pid": str(process.pid), "started": f"{process.create_time():.2f}"}


def state() -> dict[str, str]:
    """What a repro starts from, as tags: versions, commit, whether files differ from it, and the hash of dvc.lock."""
    found = {"version.python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    if commit is not None and changes is not None:
        found |= {"commit": commit, "dirty": str(bool(changes)).lower()}
    if LOCK.exists():
        found["dvc.lock"] = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    return found


def end_dead_runs(client: MlflowClient, experiment: str) -> None:
    """Set the runs of this host that are RUNNING, but whose process is dead, to KILLED.

    Runs of other hosts are left alone, and so are runs without the tags of `owner`.
    """
    for run in client.search_runs([experiment], f"attributes.status = 'RUNNING' and tags.host = '{platform.node()}'"):
        if not _lives(run.data.tags):
            client.set_terminated(run.info.run_id, "KILLED")


def _lives(tags: Mapping[str, str]) -> bool:
    """Whether the process that the tags name lives: one of its number that started when it did."""
    if not {"pid", "started"} <= tags.keys():
        return True
    try:
        process = psutil.Process(int(tags["pid"]))
        same = abs(process.create_time() - float(tags["started"])) <= SLACK
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _git(*arguments: str) -> str | None:
    """What git prints; None outside of a repository, or without git."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
