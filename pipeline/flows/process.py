"""Child processes that die with whoever started them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline import ROOT

# Seconds that DVC has to write its files after its stage got SIGTERM. Nested ends must take less than ten seconds.
PATIENCE = 2.5
# Seconds that a flow has, after SIGTERM, to end its stage and to report its end.
FLOW_PATIENCE = 6.0
# Seconds between two looks at the process that started this one.
INTERVAL = 0.5
# What `run` has started, in any thread of this process, and has not seen the end of.
_running: set[subprocess.Popen[str]] = set()
# Whether this process ends with the one that started it.
_ending = threading.Event()


class TimedOut(RuntimeError):
    """The command ran past its limit and was ended with everything it had started."""


def start(
    command: Sequence[str], *, patience: float = PATIENCE, children_first: bool = False, **options
) -> subprocess.Popen[str]:
    """The command under a supervisor: closing the child's `stdin` ends it and all that it started.

    patience: seconds between SIGTERM and SIGKILL. children_first: whether the command itself gets SIGTERM only after
    that time; see `pipeline.flows.supervisor`.
    """
    first = ["--children-first"] if children_first else []
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline.flows.supervisor", "--patience", str(patience), *first, *command],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    threading.Thread(target=_kill_what_a_killed_supervisor_leaves, args=[child], daemon=True).start()
    return child


def _kill_what_a_killed_supervisor_leaves(child: subprocess.Popen[str]) -> None:
    if child.wait() < 0:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def run(
    command: Sequence[str],
    log: Callable[[str], None],
    *,
    folder: Path,
    timeout: float,
    variables: Mapping[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Run the command in `folder`, each line of its output to `log`; its exit code and its lines.

    variables: of the environment, beside those of this process.

    Raises `TimedOut` after `timeout` seconds. On any exception here, cancellation among them, the command is ended:
    what it started gets SIGTERM first, and the command after `PATIENCE` seconds.
    """
    child = start(
        command,
        children_first=True,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
        env=environment() | dict(variables or {}),
    )
    _running.add(child)
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        close(child)

    timer = threading.Timer(timeout, expire)
    timer.start()
    lines: list[str] = []
    try:
        assert child.stdout is not None
        for line in child.stdout:
            # A progress bar redraws its line: the last drawing is the one to keep.
            text = line.rstrip().split("\r")[-1]
            if text:
                lines.append(text)
                log(text)
        code = child.wait()
    finally:
        timer.cancel()
        stop(child)
        _running.discard(child)
    if expired.is_set():
        raise TimedOut(f"{' '.join(command)}: killed after {timeout:g} s")
    return code, lines


def close(child: subprocess.Popen[str]) -> None:
    """Have the supervisor end the command and all that it started."""
    if child.stdin is not None and not child.stdin.closed:
        child.stdin.close()


def stop(child: subprocess.Popen[str]) -> None:
    """`close`, and wait until it has ended."""
    close(child)
    child.wait()


def close_all() -> None:
    """`close` every command of `run`, also of other threads: an exception reaches the main one alone."""
    for child in tuple(_running):
        close(child)


def end_with_parent() -> None:
    """Have this process end after the one that started it, also where that one is killed.

    This process gets SIGTERM, and SIGKILL if that has not ended it after twice `PATIENCE`. Runs of a Prefect worker
    would go on without it.
    """
    if _ending.is_set():  # a flow within a flow
        return
    _ending.set()
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(INTERVAL)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2 * PATIENCE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def environment() -> dict[str, str]:
    """This environment, with the interpreter's tools first on the PATH and the project importable."""
    tools = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": os.pathsep.join([tools, os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }
