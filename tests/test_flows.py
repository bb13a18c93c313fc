"""The Prefect flow and its schedule, on a real server; and processes that die with whoever started them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.flows import process


def alive(marker: str) -> bool:
    return any(marker in path.read_text(errors="replace") for path in _command_lines() if path.exists())


def _command_lines() -> list[Path]:
    return [path / "cmdline" for path in Path("/proc").iterdir() if path.name.isdigit()]


def wait_until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return True
        except OSError:  # a process ended while it was looked at
            pass
        time.sleep(0.2)
    return False


def sleeper(marker: str) -> list[str]:
    """A command whose grandchild, like a trainer under DVC, is the one that works."""
    return ["sh", "-c", f"{sys.executable} -c 'import time; time.sleep(300)' {marker} & wait"]


def test_output_and_exit_code_come_back(tmp_path):
    lines: list[str] = []
    code, seen = process.run(["sh", "-c", "echo one; echo two >&2; exit 3"], lines.append, folder=tmp_path, timeout=60)
    assert (code, sorted(seen), sorted(lines)) == (3, ["one", "two"], ["one", "two"])


def test_a_time_out_kills_all_that_was_started(tmp_path):
    with pytest.raises(process.TimedOut, match="killed after 1 s"):
        process.run(sleeper("elder-test-timeout"), print, folder=tmp_path, timeout=1)
    assert wait_until(lambda: not alive("elder-test-timeout"), 10)


def test_an_interruption_kills_all_that_was_started(tmp_path):
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    command = ["sh", "-c", f"echo started; {sys.executable} -c 'import time; time.sleep(300)' elder-test-interrupt"]
    with pytest.raises(KeyboardInterrupt):
        process.run(command, interrupt, folder=tmp_path, timeout=60)
    assert wait_until(lambda: not alive("elder-test-interrupt"), 10)


def test_the_death_of_the_starter_kills_all_that_was_started(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pipeline.flows import process\n"
        # In two parts, so that the starter itself does not have the marker in its command line.
        f"command = {sleeper('elder-test-MARK')!r}\n"
        "command = [word.replace('MARK', 'orphan') for word in command]\n"
        "process.run(command, print, folder=Path('.'), timeout=300)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], cwd=process.ROOT)
    assert wait_until(lambda: alive("elder-test-orphan"), 30)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    assert wait_until(lambda: not alive("elder-test-orphan"), 10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def served(project, tmp_path, request):
    """`python -m pipeline.serve` every minute, in a copy of the project; or more often with stages of a parameter."""
    project.only_least_squares()
    when = ["--cron", "* * * * *"]
    if stages := getattr(request, "param", None):
        (project.folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
        when = ["--every", "20"]
    port = free_port()
    log = tmp_path / "serve.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "pipeline.serve", *when, "--port", str(port)],
            cwd=project.folder,
            env=project.environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    yield project, port, log
    server.send_signal(signal.SIGINT)
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def ask(project, port: int, code: str):
    """What an asynchronous expression over a Prefect client evaluates to, in the project's own process."""
    script = (
        f"import os, asyncio, json; os.environ['PREFECT_API_URL'] = 'http://127.0.0.1:{port}/api'\n"
        "import pipeline\n"
        "from prefect import get_client\n"
        "async def main():\n"
        "    async with get_client() as client:\n"
        f"        print(json.dumps({code}))\n"
        "asyncio.run(main())"
    )
    return json.loads(project.python(script).splitlines()[-1])


@pytest.mark.slow
def test_a_scheduled_run_fires_by_itself_and_finishes(served):
    project, port, log = served
    finished = project.folder / "reports" / "index.html"
    assert wait_until(finished.exists, 240), log.read_text()[-3000:]
    runs = "[(r.auto_scheduled, r.state.type.value) for r in await client.read_flow_runs()]"
    assert wait_until(lambda: [True, "COMPLETED"] in ask(project, port, runs), 60), log.read_text()[-3000:]
    registered = project.python("from elder.model import registry; print(len(registry.listing()))")
    assert registered.splitlines()[-1] == "1"
    artifacts = ask(project, port, "[a.key for a in await client.read_artifacts()]")
    assert {"csmri-least-squares-table", "csmri-panel", "csmri-least-squares-verdict", "report"} <= set(artifacts)


@pytest.mark.parametrize("served", [{"one": {"cmd": "echo 1 > one.txt", "outs": ["one.txt"]}}], indirect=True)
def test_a_served_run_reaches_its_end(served):
    project, port, log = served
    assert wait_until((project.folder / "one.txt").exists, 300), log.read_text()[-3000:]
    runs = "[(r.auto_scheduled, r.state.type.value) for r in await client.read_flow_runs()]"
    assert wait_until(lambda: [True, "COMPLETED"] in ask(project, port, runs), 60), log.read_text()[-3000:]


def test_a_stage_that_fails_fails_the_flow_with_its_reason(project):
    project.change("pretrain", steps="many")
    done = project.run(sys.executable, "-m", "pipeline.flows", check=False)
    assert done.returncode != 0
    assert "pretrain.steps='many' must be a whole number" in done.stderr + done.stdout


def test_all_stages_of_a_flow_belong_to_one_repro(project):
    """DVC is started again for each stage, so the flow names itself."""
    show = f"{sys.executable} -c 'from pipeline.tracking import repros; print(repros.current())'"
    stages = {name: {"cmd": f"{show} > {name}.txt"} for name in ("one", "two")}
    (project.folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    project.run(sys.executable, "-m", "pipeline.flows")
    one, two = ((project.folder / f"{name}.txt").read_text() for name in stages)
    assert one == two
    assert re.fullmatch(r"flow [0-9a-f-]{36}\n", one)


def test_a_taken_port_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.serve", "--cron", "0 3 * * *", "--port", str(port)],
            cwd=process.ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert f"port {port} is taken" in done.stderr
