"""Ends of processes: of commands under a supervisor, and of a deployment that is killed in the middle of a training."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import Project, answers, copy_project
from mlflow import MlflowClient
from test_flows import alive, ask, free_port, wait_until

from pipeline import ROOT, serve
from pipeline.flows import health, process, schedule, zone

PYTHON = sys.executable
# Seconds that an end may take.
LIMIT = 10


def test_a_command_whose_children_end_writes_its_files_before_it_ends(tmp_path):
    """As DVC does: it sees its stage fail, and clears its locks."""
    code = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        "pathlib.Path('seen').write_text(str(child.wait()))"
    )
    with pytest.raises(process.TimedOut):
        process.run([PYTHON, "-c", code], print, folder=tmp_path, timeout=2)
    assert (tmp_path / "seen").read_text() == str(-signal.SIGTERM)


def test_what_ignores_a_request_is_killed():
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(300)"
    child = process.start([PYTHON, "-c", code], patience=0.5, stdout=subprocess.PIPE)
    assert child.stdout.readline() == "1\n"
    process.stop(child)
    assert child.returncode == 128 + signal.SIGKILL


def test_what_a_command_leaves_behind_ends_with_it(tmp_path):
    child = process.start(
        ["sh", "-c", f"{PYTHON} -c 'import time; time.sleep(300)' elder-test-left & sleep 0.3; exit 4"]
    )
    assert child.wait() == 4
    assert not alive("elder-test-left")


def ended(each: psutil.Process) -> bool:
    return not each.is_running() or each.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("first", [True, False], ids=["children", "command"])
def test_what_has_left_the_session_ends_too(first):
    """As the flows of a Prefect worker do; and here its parent is gone."""
    left = f"setsid {PYTHON} -c 'import time; time.sleep(300)' elder-test-apart & sleep 0.3"
    command = [PYTHON, "-c", f"import os, time; os.system({left!r}); print(1, flush=True); time.sleep(300)"]
    child = process.start(command, children_first=first, stdout=subprocess.PIPE)
    assert child.stdout.readline() == "1\n"
    (supervisor,) = psutil.Process(child.pid).children()
    (apart,) = [each for each in supervisor.children() if "elder-test-apart" in each.cmdline()]
    process.stop(child)
    assert ended(apart)


def test_a_supervisor_ends_its_command_as_it_does_where_another_one_is_above(tmp_path):
    """A flow below a worker: DVC sees its stage fail, and clears its locks."""
    code = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(300)'])\n"
        "seen = child.wait()\ntime.sleep(1)\npathlib.Path('seen').write_text(str(seen))"
    )
    flow = (
        "import signal, sys; from pathlib import Path; from pipeline.flows import process\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
        f"command, folder = [sys.executable, '-c', {code!r}], Path({str(tmp_path)!r})\n"
        "process.run(command, lambda line: print(line, flush=True), folder=folder, timeout=300)"
    )
    worker = [
        PYTHON,
        "-c",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {flow!r}], start_new_session=True)",
    ]
    child = process.start(worker, patience=6, children_first=True, stdout=subprocess.PIPE, env=process.environment())
    assert child.stdout.readline() == "1\n"
    process.stop(child)
    assert (tmp_path / "seen").read_text() == str(-signal.SIGTERM)


def test_a_killed_supervisor_takes_the_command_with_it():
    child = process.start([PYTHON, "-c", "import time; print(1, flush=True); time.sleep(300)"], stdout=subprocess.PIPE)
    assert child.stdout.readline() == "1\n"
    supervisor, command = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    assert wait_until(lambda: ended(supervisor) and ended(command), LIMIT)


def test_a_starter_that_kills_its_children_and_dies_takes_the_command_with_it():
    """As a worker of Ray does."""
    code = (
        "import os, signal, sys; from pipeline.flows import process\n"
        "run = 'import os, time; print(os.getpid(), flush=True); time.sleep(300)'\n"
        "child = process.start([sys.executable, '-c', run])\n"
        "sys.stdin.read(1); child.kill(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    starter = subprocess.Popen(
        [PYTHON, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=process.ROOT
    )
    command = psutil.Process(int(starter.stdout.readline()))
    starter.stdin.close()
    assert starter.wait() == -signal.SIGKILL
    assert wait_until(lambda: ended(command), LIMIT)


def test_a_run_of_a_worker_ends_with_the_worker():
    run = (
        "import time; from pipeline.flows import process\n"
        "process.end_with_parent(); print(1, flush=True); time.sleep(300)"
    )
    worker = subprocess.Popen(
        [PYTHON, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {run!r}])"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=process.ROOT,
    )
    assert worker.stdout.readline() == "1\n"
    (child,) = psutil.Process(worker.pid).children()
    worker.kill()
    worker.wait()
    assert wait_until(lambda: ended(child), LIMIT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cron", "99 3 * * *"], "'99 3 * * *' is no cron schedule that can fire"),
        (["--cron", "0 3 31 2 *"], "'0 3 31 2 *' is no cron schedule that can fire: failed to find next date"),
        (["--cron", "0 3 * * *", "--timezone", "Mars/Base"], "'Mars/Base' is no time zone"),
        (["--every", "0"], "at least 10 s; got 0"),
        (["--every", "nan"], "nan s is no interval"),
    ],
)
def test_an_impossible_schedule_is_one_line_before_any_server_starts(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        serve.parse()
    assert str(ended.value).startswith("serve: ")
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize(("zone", "offset"), [("Europe/Berlin", {1, 2}), ("Asia/Tokyo", {9}), ("UTC", {0})])
def test_a_cron_schedule_fires_at_its_hour_of_its_time_zone(zone, offset):
    first = schedule.following(schedule.cron("30 3 * * *", zone))
    assert (first.hour, first.minute) == (3, 30)
    assert first.utcoffset().total_seconds() / 3600 in offset


def test_the_time_zone_is_the_machine_s(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert zone.local_zone() == "Asia/Tokyo"
    monkeypatch.setenv("TZ", ":/usr/share/zoneinfo/Asia/Tokyo")
    assert zone.local_zone() == "Asia/Tokyo"
    for nonsense in ("nonsense", "JST-9", "/etc/passwd"):
        monkeypatch.setenv("TZ", nonsense)
        with pytest.raises(ValueError, match="is not the name of a time zone"):
            zone.local_zone()
    monkeypatch.delenv("TZ")
    assert zone.local_zone() in {"UTC", str(Path("/etc/localtime").resolve()).rpartition("zoneinfo/")[2]}


def test_a_deployment_is_served_once(tmp_path):
    refused = pytest.raises(SystemExit, match=rf"PID {os.getpid()} serves the deployment 'nightly' already")
    with serve.only_one(tmp_path / "lock", "nightly"), refused, serve.only_one(tmp_path / "lock", "nightly"):
        pass
    with serve.only_one(tmp_path / "lock", "nightly"):
        pass


@pytest.mark.parametrize(
    ("command", "who"),
    [(["pipeline.serve", "--every", "60"], "serve"), (["pipeline.worker"], "worker"), (["pipeline.flows"], "flows")],
)
def test_a_server_that_does_not_answer_is_named(command, who):
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    done = subprocess.run(
        [PYTHON, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    told = (
        f"{who}: no Prefect server answers at PREFECT_API_URL=http://127.0.0.1:1/api; start it, or correct the address"
    )
    assert done.stderr.strip() == told


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A project of three stages, the last a training of half a minute, which has not begun."""
    made = copy_project(tmp_path_factory.mktemp("prepared") / "project")
    made.only_least_squares()
    made.change("pretrain", steps=1200)
    graph = yaml.safe_load((made.folder / "dvc.yaml").read_text())["stages"]
    stages = {name: graph[name] for name in ("code", "prepare", "pretrain")}
    (made.folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    made.run("dvc", "repro", "prepare")
    return made.folder


@contextmanager
def started(project: Project, *command: str, **environment: str):
    """A command in the project, and a function that reads what it has printed.

    Trainings have one thread: on a busy machine, several wait for each other most of the time.
    """
    log = project.folder / f"printed-{time.monotonic_ns()}.log"
    with log.open("w") as file:
        door = subprocess.Popen(
            command,
            cwd=project.folder,
            env=project.environment | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield door, log.read_text
    finally:
        door.send_signal(signal.SIGTERM)
        door.wait()


def serving(project: Project, port: int, seconds: int, **environment: str):
    """`python -m pipeline.serve`, as `started` gives it."""
    command = [PYTHON, "-m", "pipeline.serve", "--every", str(seconds), "--port", str(port)]
    return started(project, *command, **environment)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Those that live and work in the folder, without those that have ended."""
    found = []
    for each in psutil.process_iter():
        try:
            if each.status() != psutil.STATUS_ZOMBIE and Path(each.cwd()).is_relative_to(folder):
                found.append(each)
        except psutil.Error:
            continue
    return found


def named(folder: Path, *words: str) -> psutil.Process:
    """The one process in the folder with these words in its command, and not a supervisor."""
    lines = [(each, " ".join(each.cmdline())) for each in processes_in(folder)]
    (found,) = [each for each, line in lines if all(w in line for w in words) and "supervisor" not in line]
    return found


def training(folder: Path) -> bool:
    """Whether a training is under way that has something to resume from."""
    return any((folder / ".checkpoints").rglob("state.pt"))


def assert_resumed(folder: Path, store: str = "") -> None:
    """One MLflow run of the training, which is finished, and whose curve has no step twice."""
    client = MlflowClient(store or f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("elder").experiment_id
    (run,) = client.search_runs([experiment], "tags.stage = 'pretrain'")
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
    assert all(first < second for first, second in pairwise(steps)), steps
    assert not training(folder)


COMPLETED = re.compile(r"Flow run '[\w-]+' - Finished in state Completed")
RUNS = "[(r.name, r.state.type.value, r.auto_scheduled) for r in await client.read_flow_runs()]"
DEPLOYMENTS = "[(d.paused, len(d.schedules)) for d in await client.read_deployments()]"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
@pytest.mark.parametrize("target", ["serve", "server", "flow"])
def test_a_kill_in_mid_training_leaves_nothing_and_the_next_run_finishes(target, number, project):
    port, notices = free_port(), project.folder / "notices.jsonl"
    weights = project.folder / "models" / "pretrained" / "least_squares" / "weights.safetensors"
    with serving(project, port, 10, ELDER_NOTIFY=str(notices)) as (door, printed):
        assert wait_until(lambda: training(project.folder), 240), printed()
        (first,) = [name for name, state, _ in ask(project, port, RUNS) if state == "RUNNING"]
        flow = named(project.folder, "spawn_main")
        stage = named(project.folder, "stages.pretrain")
        server = named(project.folder, "prefect", "server", "start")
        assert not weights.exists()
        killed = {"serve": psutil.Process(door.pid), "server": server, "flow": flow}[target]
        killed.send_signal(number)
        if target == "flow":
            assert wait_until(lambda: not flow.is_running() and not stage.is_running(), LIMIT), printed()
            assert wait_until(lambda: COMPLETED.search(printed()), 240), printed()
        else:
            assert wait_until(lambda: not processes_in(project.folder) and door.poll() is not None, LIMIT), printed()
            assert not weights.exists()
            if target == "server":
                assert door.returncode == 1
                assert "serve: the Prefect server ended with exit code" in printed()
            elif number == signal.SIGTERM:
                assert door.returncode == 0
    with serving(project, port, 25, ELDER_NOTIFY=str(notices)) as (_, printed):
        assert wait_until(lambda: COMPLETED.search(printed()), 240), printed()
        assert weights.exists()
        states = ask(project, port, RUNS)
        assert ask(project, port, DEPLOYMENTS) == [[False, 1]]
    types = {name: state for name, state, _ in states}
    assert types.pop(first) == "CRASHED", states
    # A run of the second schedule may have begun since.
    assert [*types.values()].count("RUNNING") + [*types.values()].count("PENDING") <= 1, states
    told = [json.loads(line) for line in notices.read_text().splitlines()]
    assert sum(notice["event"] == "failure" and first in notice["text"] for notice in told) == 1, told
    assert_resumed(project.folder)


@dataclass
class Server:
    """A Prefect server that is not `serve`'s own. What it knows is in the folder, and a new start finds it there."""

    folder: Path
    port: int = field(default_factory=free_port)
    running: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        environment = process.environment() | {"PREFECT_HOME": str(self.folder)}
        with (self.folder / "server.log").open("a") as log:
            self.running = process.start(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.folder
            )
        assert wait_until(lambda: health.answers(self.url), 240), (self.folder / "server.log").read_text()[-3000:]

    def stop(self) -> None:
        if self.running:
            process.stop(self.running)

    def kill(self) -> None:
        """End it without a word, as the kernel does when memory is short."""
        if self.running:
            for one in psutil.Process(self.running.pid).children(recursive=True):
                one.kill()
            self.stop()


@pytest.fixture
def server(tmp_path):
    (tmp_path / "server").mkdir()
    made = Server(tmp_path / "server")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def project(prepared, tmp_path):
    """A copy of the prepared project."""
    copy = Project(tmp_path / "project")
    shutil.copytree(prepared, copy.folder, symlinks=True)
    return copy


LATE = "[r.name for r in await client.read_flow_runs() if r.state_name == 'Late']"
STATES = "[(r.state.type.value, r.state.message) for r in await client.read_flow_runs()]"


@pytest.mark.slow
def test_runs_that_came_due_while_nothing_served_them_are_skipped(server, project):
    port, url = server.port, server.url
    with serving(project, port, 10, PREFECT_API_URL=url) as (door, printed):
        assert wait_until(lambda: "Beginning flow run" in printed(), 240), printed()
        door.kill()
    assert wait_until(lambda: not processes_in(project.folder), LIMIT)
    assert wait_until(lambda: len(ask(project, port, LATE)) >= 2, 240)
    with serving(project, port, 3600, PREFECT_API_URL=url) as (_, printed):
        assert wait_until(lambda: "is skipped: due while nothing served it" in printed(), 240), printed()
        assert wait_until(lambda: not ask(project, port, LATE), 60), printed()
        states = ask(project, port, STATES)
        assert ask(project, port, DEPLOYMENTS) == [[False, 1]]
    assert ["CANCELLED", "skipped: due while nothing served it"] in states
    assert not {"RUNNING", "PENDING", "CANCELLING"} & {state for state, _ in states}, states


@pytest.mark.slow
def test_a_server_that_is_lost_in_mid_training_ends_serve(server, project):
    port, url = server.port, server.url
    with serving(project, port, 10, PREFECT_API_URL=url) as (door, printed):
        assert wait_until(lambda: training(project.folder), 240), printed()
        assert wait_until(lambda: "is skipped: due again before it could start" in printed(), 60), printed()
        server.stop()
        assert wait_until(lambda: door.poll() is not None, 240), printed()
        assert door.returncode == 1
        assert f"serve: the runner gave up: the Prefect server at {url}/ has not answered for 60 s" in printed()
    assert wait_until(lambda: not processes_in(project.folder), LIMIT), printed()


@pytest.mark.slow
def test_an_mlflow_server_that_does_not_answer_is_named_and_a_re_run_mends_it(project):
    command = [PYTHON, "-m", "pipeline.flows"]
    environment = project.environment | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
    failed = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "http://127.0.0.1:1: the MLflow server does not answer" in failed.stdout + failed.stderr
    project.run(*command)


@pytest.mark.slow
def test_an_mlflow_server_that_is_lost_in_mid_training_fails_the_flow_and_a_re_run_resumes(project, server):
    port, folder = free_port(), project.folder
    store = f"http://127.0.0.1:{port}"
    mlflow = [PYTHON, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    mlflow += ["--backend-store-uri", f"sqlite:///{folder / 'served.db'}"]
    mlflow += ["--artifacts-destination", str(folder / "artifacts")]
    variables = {"MLFLOW_TRACKING_URI": store, "PREFECT_API_URL": server.url}
    command = [PYTHON, "-m", "pipeline.flows"]
    with ExitStack() as stack:
        with started(project, *mlflow) as (_, served):
            assert wait_until(lambda: answers(f"{store}/health"), 240), served()
            door, printed = stack.enter_context(started(project, *command, **variables))
            assert wait_until(lambda: training(folder), 240), printed()
        assert wait_until(lambda: door.poll() is not None, 240), printed()
        assert door.returncode == 1, printed()
        assert f"{store}: the MLflow server does not answer" in printed()
    with started(project, *mlflow) as (_, served):
        assert wait_until(lambda: answers(f"{store}/health"), 240), served()
        subprocess.run(command, cwd=folder, env=project.environment | variables, check=True, capture_output=True)
        assert_resumed(folder, store)
    states = ask(project, server.port, RUNS)
    assert sorted(state for _, state, _ in states) == ["COMPLETED", "FAILED"], states
