"""A process that logs to MLflow while a stage works: the stage starts it, and tells it line by line what to log.

Importing MLflow and opening its store takes some four seconds of a processor, and the pipeline has about fifty stages.
So a stage does not wait for it. The stage writes JSON, a line a message, to the standard input of this process:
the `Opening` of the run, then metrics and artifacts, and at last how the stage ended. A line on the standard output
says what went wrong. If the stage dies, its input ends without the last message, and this process ends too: the run
stays RUNNING, and the next stage sets it to KILLED.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from elder import command
from elder.errors import UserError
from pipeline import ROOT
from pipeline.tracking import experiments
from pipeline.tracking.experiments import Opening


class Remote:
    """A run that another process logs to."""

    def __init__(self, title: str, process: subprocess.Popen[str]) -> None:
        self._title = title
        self._process = process

    def metrics(self, metrics: Mapping[str, float], step: int | None) -> None:
        """As `experiments.Run.metrics`. Raises `UserError` if logging has failed."""
        self.send({"metrics": {name: float(value) for name, value in metrics.items()}, "step": step})

    def artifacts(self, paths: Sequence[Path]) -> None:
        """As `experiments.Run.artifacts`, by the end of the run. Raises `UserError` if logging has failed."""
        self.send({"artifacts": [str(path.absolute()) for path in paths]})

    def send(self, message: Mapping[str, Any]) -> None:
        """Write a message. Raises `UserError` if logging has failed."""
        assert self._process.stdin is not None
        try:
            if self._process.poll() is not None:
                raise BrokenPipeError
            self._process.stdin.write(f"{json.dumps(message)}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.finish()
            raise UserError(f"{self._title}: logging to MLflow ended early") from None

    def finish(self) -> None:
        """Wait until everything is logged. Raises `UserError` if logging has failed."""
        assert self._process.stdout is not None
        told = self._process.stdout.read().strip()
        code = self._process.wait()
        if told:
            raise UserError(told)
        if code != 0:
            raise UserError(f"{self._title}: the process that logs to MLflow ended with exit code {code}")


@contextmanager
def opened(opening: Opening) -> Iterator[Remote]:
    """As `experiments.opened`, in another process. Raises `UserError` at its end if logging has failed by then."""
    # The stage may have found this package elsewhere than in the current folder.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.tracking.recorder"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    with process:
        remote = Remote(opening.title, process)
        remote.send(asdict(opening))
        try:
            yield remote
        except BaseException:
            with suppress(UserError):  # what the stage raises says more
                remote.send({"succeeded": False})
                remote.finish()
            raise
        remote.send({"succeeded": True})
        remote.finish()


class StageFailed(Exception):
    """The stage whose run this is has ended with an error, which it tells itself."""


def main() -> int:
    """Log what the standard input says. Returns the exit code."""
    command.end_quickly()
    # MLflow prints to the standard output, which is for our own line.
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Ctrl-C reaches the stage too, which then says that it failed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        log(sys.stdin)
    except StageFailed:
        return 0
    except Exception as error:
        if os.environ.get(command.TRACEBACK):
            traceback.print_exc()
        print(command.describe(error), file=told, flush=True)
        return 1
    return 0


def log(messages: IO[str]) -> None:
    """Log the messages of a stage to its run. Raises `StageFailed` if the last one says that the stage failed."""
    first = messages.readline()
    if not first:
        return
    with experiments.opened(Opening(**json.loads(first))) as run:
        for line in messages:
            message: dict[str, Any] = json.loads(line)
            if "metrics" in message:
                run.metrics(message["metrics"], message["step"])
            elif "artifacts" in message:
                run.artifacts([Path(path) for path in message["artifacts"]])
            elif message["succeeded"]:
                return
            else:
                raise StageFailed
        # The stage was killed. Its run is left as it is: whoever comes next sees that its process is dead.
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
