"""Child processes that die with whoever started them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline import ROOT


class TimedOut(RuntimeError):
    """The command ran past its limit and was killed with everything it had started."""


def start(command: Sequence[str], **options) -> subprocess.Popen[str]:
    """The command under a supervisor: closing the child's `stdin` kills it and all that it started."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.flows.supervisor", *command],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


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

    Raises `TimedOut` after `timeout` seconds. On any exception here, cancellation among them, the command is killed.
    """
    child = start(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
        env=environment() | dict(variables or {}),
    )
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
    if expired.is_set():
        raise TimedOut(f"{' '.join(command)}: killed after {timeout:g} s")
    return code, lines


def close(child: subprocess.Popen[str]) -> None:
    """Have the supervisor kill the command and all that it started."""
    if child.stdin is not None and not child.stdin.closed:
        child.stdin.close()


def stop(child: subprocess.Popen[str]) -> None:
    """`close`, and wait until it has ended."""
    close(child)
    child.wait()


def environment() -> dict[str, str]:
    """This environment, with the interpreter's tools first on the PATH and the project importable."""
    tools = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": os.pathsep.join([tools, os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }
