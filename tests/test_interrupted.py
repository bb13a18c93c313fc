"""Runs that something interrupts: the end of a worker, a Prefect server that is started again, a second flow."""

from __future__ import annotations

import contextlib
import re
import signal
import sqlite3
import subprocess
import sys
from itertools import dropwhile
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import ROOT, Project
from test_ends import (  # noqa: F401  fixtures among them
    LIMIT,
    assert_resumed,
    named,
    prepared,
    processes_in,
    project,
    server,
    serving,
    started,
    training,
)
from test_flows import wait_until
from test_flows_deployments import deploy, make_pool
from test_flows_worker import ask

pytestmark = pytest.mark.slow
WEIGHTS = Path("models") / "pretrained" / "least_squares" / "weights.safetensors"
OPEN = {"RUNNING", "PENDING", "CANCELLING"}


def runs(url: str) -> dict[str, str]:
    """The state of each run that is due or has begun, by its id."""
    found = ask(f"{url}/flow_runs/filter", {"flow_runs": {"state": {"name": {"not_any_": ["Scheduled"]}}}})
    return {run["id"]: run["state"]["type"] for run in found}


def deployment(url: str) -> dict:
    (found,) = ask(f"{url}/deployments/filter", {})
    return found


@pytest.fixture
def deployed(server, project):  # noqa: F811
    """The prepared project with the deployment `train/nightly` on a server. Its schedule fires in leap years only."""
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    nightly = next(one for one in content["deployments"] if one["name"] == "nightly")
    nightly["schedules"] = [nightly["schedules"][0] | {"cron": "0 0 29 2 *"}]
    content["deployments"] = [nightly]
    (project.folder / "prefect.yaml").write_text(yaml.safe_dump(content))
    make_pool(server.url)
    deploy(project.folder, server.url)
    return server, project


def working(project: Project, url: str):  # noqa: F811
    """`python -m pipeline.worker`, as `started` gives it."""
    return started(project, sys.executable, "-m", "pipeline.worker", PREFECT_API_URL=url)


def start_run(url: str) -> str:
    """Ask for a run of the deployment; its id."""
    return ask(f"{url}/deployments/{deployment(url)['id']}/create_flow_run", {})["id"]


def supervises(one: psutil.Process) -> bool:
    """Whether a process is part of a supervisor."""
    return "supervisor" in " ".join(one.cmdline())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
@pytest.mark.parametrize("target", ["worker", "prefect", "flow"])
def test_the_end_of_a_worker_in_mid_training_leaves_nothing_and_the_next_run_resumes(target, number, deployed):
    server, project = deployed  # noqa: F811
    first = start_run(server.url)
    with working(project, server.url) as (door, printed):
        assert wait_until(lambda: training(project.folder), 240), printed()
        stage = named(project.folder, "stages.pretrain")
        # Between the flow and DVC is a supervisor of two processes, and one of the worker is above.
        above = dropwhile(lambda each: not supervises(each), stage.parents())
        flow = next(each for each in above if not supervises(each))
        worker = named(project.folder, "prefect", "worker", "start")
        killed = {"worker": psutil.Process(door.pid), "prefect": worker, "flow": flow}[target]
        killed.send_signal(number)
        if target == "flow":
            assert wait_until(lambda: not flow.is_running() and not stage.is_running(), LIMIT), printed()
            assert wait_until(lambda: runs(server.url) == {first: "CRASHED"}, 60), printed()
        else:
            assert wait_until(lambda: not processes_in(project.folder) and door.poll() is not None, LIMIT), printed()
        assert not (project.folder / WEIGHTS).exists()
    if target == "worker" and number == signal.SIGTERM:  # Prefect's own worker, told to end, kills its flow
        assert runs(server.url) == {first: "CRASHED"}
    second = start_run(server.url)
    with working(project, server.url) as (_, printed):
        assert wait_until(lambda: runs(server.url).get(second, "SCHEDULED") not in {"SCHEDULED", *OPEN}, 240), printed()
    assert runs(server.url) == {first: "CRASHED", second: "COMPLETED"}, printed()
    assert_resumed(project.folder)
    assert (deployment(server.url)["paused"], len(deployment(server.url)["schedules"])) == (False, 1)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_server_that_is_started_again_in_mid_training_stops_no_worker(end, deployed):
    """The training ends while the server is away."""
    server, project = deployed  # noqa: F811
    first = start_run(server.url)
    with working(project, server.url) as (door, printed):
        assert wait_until(lambda: training(project.folder), 240), printed()
        getattr(server, end)()
        assert wait_until((project.folder / WEIGHTS).exists, 240), printed()
        server.start()
        second = start_run(server.url)
        assert wait_until(lambda: runs(server.url).get(second, "SCHEDULED") not in {"SCHEDULED", *OPEN}, 240), printed()
        assert door.poll() is None
    states = runs(server.url)
    assert states[first] in {"COMPLETED", "CRASHED", "FAILED"}, states
    assert states == {first: states[first], second: "COMPLETED"}, printed()
    assert_resumed(project.folder)


def test_a_server_that_is_started_again_in_mid_training_stops_no_served_run(server, project):  # noqa: F811
    with serving(project, server.port, 10, PREFECT_API_URL=server.url) as (door, printed):
        assert wait_until(lambda: training(project.folder), 240), printed()
        server.stop()
        server.start()
        assert wait_until((project.folder / WEIGHTS).exists, 240), printed()
        assert wait_until(lambda: "COMPLETED" in runs(server.url).values(), 240), printed()
        assert door.poll() is None, printed()
        assert (deployment(server.url)["paused"], len(deployment(server.url)["schedules"])) == (False, 1)
    assert not OPEN & set(runs(server.url).values())
    assert_resumed(project.folder)


@pytest.fixture
def waiting(project):  # noqa: F811
    """The project with one stage, which notes that it began and waits for the file `go`."""
    (project.folder / "wait.py").write_text(
        "import time\nfrom pathlib import Path\n"
        "Path('began').open('a').write('once ')\n"
        "while not Path('go').exists():\n    time.sleep(0.1)\n"
        "Path('one.txt').touch()\n"
    )
    stages = {"one": {"cmd": "python wait.py", "outs": ["one.txt"]}}
    (project.folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    return project


BY_HAND = [sys.executable, "-m", "pipeline.flows"]


def test_two_flows_at_once_work_one_after_the_other_or_one_is_refused(waiting):
    """Each has its own Prefect server, as `python -m pipeline.flows` starts it."""
    folder = waiting.folder
    hurried = [sys.executable, "-c", "from pipeline.flows.flow import train; train(wait=0)"]
    with started(waiting, *BY_HAND) as (first, printed):
        assert wait_until((folder / "began").exists, 240), printed()
        holds = f"(PID {named(folder, 'pipeline.flows.command').pid}) holds {folder}"
        refused = subprocess.run(
            hurried, cwd=folder, env=waiting.environment, capture_output=True, text=True, check=False
        )
        assert refused.returncode != 0
        assert f"{holds}; run again once it has ended" in refused.stderr
        with started(waiting, *BY_HAND) as (second, also_printed):
            assert wait_until(lambda: holds in also_printed(), 240), also_printed()
            assert "waiting: flow run" in also_printed()
            (folder / "go").touch()
            assert (first.wait(240), second.wait(240)) == (0, 0), also_printed()
    assert (folder / "began").read_text() == "once "
    assert "up to date" in waiting.run("dvc", "status").stdout


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
@pytest.mark.parametrize("target", ["command", "flow"])
def test_the_end_of_a_flow_by_hand_is_that_of_its_server_and_the_next_one_finishes(target, number, waiting):
    folder = waiting.folder
    with started(waiting, *BY_HAND) as (command, printed):
        assert wait_until((folder / "began").exists, 240), printed()
        assert named(folder, "uvicorn").is_running()
        killed = psutil.Process(command.pid) if target == "command" else named(folder, "pipeline.flows.command")
        killed.send_signal(number)
        assert wait_until(lambda: not processes_in(folder) and command.poll() is not None, LIMIT), printed()
        assert command.returncode != 0
    (folder / "go").touch()
    told = waiting.run(*BY_HAND)
    assert (folder / "one.txt").exists()
    # A flow that could not report its end is closed by the next one.
    closed = re.findall(r"run \S+ is now Crashed: its process ended without a report", told.stdout + told.stderr)
    assert len(closed) == ((target, number) == ("flow", signal.SIGKILL))
    with contextlib.closing(sqlite3.connect(folder / ".prefect" / "prefect.db")) as database:
        states = sorted(row[0] for row in database.execute("select state_type from flow_run"))
    assert states == ["COMPLETED", "CRASHED"]
