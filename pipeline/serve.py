"""A deployment that retrains on a schedule: `python -m pipeline.serve --cron "0 3 * * *"`.

Needs nothing but the installation: where PREFECT_API_URL is not set, a Prefect server on 127.0.0.1 is started beside it
and ends with it. All that is started here ends with it, within ten seconds, also where this process is killed.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pipeline import ROOT
from pipeline.flows import health, process

# Seconds that the runner has to end its flow and itself, and the server to answer what it was asked.
RUNNER_PATIENCE = 5.0
SERVER_PATIENCE = 1.0
# Seconds between two looks at both.
INTERVAL = 0.2


class Stopped(Exception):
    """SIGTERM or SIGINT came."""


def main() -> None:
    """Serve the flow until interrupted."""
    arguments = parse()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    with ExitStack() as stack:
        try:
            stack.enter_context(only_one(ROOT / ".prefect" / f"serve-{arguments.name}.lock", arguments.name))
            url = os.environ.get("PREFECT_API_URL")
            server = None
            if url:
                health.check(url, "serve")
            else:
                server = start_server(arguments.port)
                url = f"http://127.0.0.1:{arguments.port}/api"
                stack.callback(process.stop, server)
            runner = start_runner(arguments, url)
            stack.callback(process.stop, runner)
            wait(runner, server)
        except Stopped:
            print("serve: stopping: the flow first, then the server", flush=True)
        finally:
            # The stop is bounded, so that a second signal has nothing to add.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)


def parse() -> argparse.Namespace:
    """The arguments, with a schedule that can fire, or one line and the end of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    when = parser.add_mutually_exclusive_group(required=True)
    when.add_argument("--cron", help='a cron schedule, such as "0 3 * * *": every night at three')
    when.add_argument("--every", type=float, metavar="SECONDS", help="an interval instead, of at least 10 s")
    parser.add_argument(
        "--timezone", metavar="ZONE", help='of --cron, such as "Europe/Berlin" (default: the machine\'s)'
    )
    parser.add_argument("--name", type=_name, default="scheduled", help="of the deployment (default: scheduled)")
    parser.add_argument(
        "--port",
        type=int,
        choices=range(1, 65536),
        metavar="PORT",
        default=4200,
        help="of the server started here (default: 4200)",
    )
    arguments = parser.parse_args()
    # Prefect takes seconds to import, and `--help` does not need it.
    from pipeline.flows import schedule, zone

    try:
        arguments.timezone = arguments.timezone or zone.local_zone()
        if arguments.cron is None:
            schedule.every(arguments.every)
            print(f"serve: a run every {arguments.every:g} s", flush=True)
        else:
            first = schedule.following(schedule.cron(arguments.cron, arguments.timezone))
            told = f"{arguments.cron!r} in time zone {arguments.timezone}, the first at {first:%Y-%m-%d %H:%M %Z}"
            print(f"serve: runs at {told}", flush=True)
    except ValueError as error:
        sys.exit(f"serve: {error}")
    return arguments


def _name(text: str) -> str:
    if not re.fullmatch(r"[\w .-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r}: a name has letters, digits, spaces, '.', '_' and '-'")
    return text


@contextmanager
def only_one(path: Path, name: str) -> Iterator[None]:
    """Refuse to serve a deployment that another process of this folder serves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"serve: PID {path.read_text()} serves the deployment {name!r} already; choose another --name")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def start_server(port: int, patience: float = 120) -> subprocess.Popen[str]:
    """A Prefect server on 127.0.0.1 that ends with this process, once it answers."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            sys.exit(
                f"serve: port {port} is taken; use it with PREFECT_API_URL=http://127.0.0.1:{port}/api, "
                "or choose another with --port"
            )
    log = server_log()
    log.parent.mkdir(parents=True, exist_ok=True)
    # By default, pages of all sites may use the server of a browser's machine, and its database keeps runs for ever.
    settings = {
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port},http://localhost:{port}",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    }
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as file:
        server = process.start(
            command,
            patience=SERVER_PATIENCE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=settings | process.environment(),
        )
    deadline = time.monotonic() + patience
    try:
        while time.monotonic() < deadline and server.poll() is None:
            if health.answers(f"http://127.0.0.1:{port}/api"):
                print(f"serve: Prefect server at http://127.0.0.1:{port}, its log in {log}", flush=True)
                return server
            time.sleep(0.5)
    except Stopped:
        process.stop(server)
        raise
    process.stop(server)
    sys.exit(f"serve: the Prefect server did not start within {patience:g} s; see {log}")


def server_log() -> Path:
    """What the server started here prints."""
    return ROOT / ".prefect" / "server.log"


def start_runner(arguments: argparse.Namespace, url: str) -> subprocess.Popen[str]:
    """The process that runs the flow when it is due."""
    when = (
        ["--every", str(arguments.every)]
        if arguments.cron is None
        else ["--cron", arguments.cron, "--timezone", arguments.timezone]
    )
    command = [sys.executable, "-m", "pipeline.flows.runner", arguments.name, *when]
    return process.start(command, patience=RUNNER_PATIENCE, env=process.environment() | {"PREFECT_API_URL": url})


def wait(runner: subprocess.Popen[str], server: subprocess.Popen[str] | None) -> NoReturn:
    """End this process with an error once the runner or the server has ended."""
    while True:
        if server is not None and server.poll() is not None:
            sys.exit(f"serve: the Prefect server ended with exit code {server.returncode}; see {server_log()}")
        if runner.poll() is not None:
            sys.exit(f"serve: the runner ended with exit code {runner.returncode}")
        time.sleep(INTERVAL)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped


if __name__ == "__main__":
    main()
