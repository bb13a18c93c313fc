"""Run the pipeline as a Prefect flow: `python -m pipeline.flows`; `--help` lists its options.

The flow is a process of its own under a supervisor, since Prefect may start a server for it. That server would outlive
a flow that is killed, and one that is ended by SIGTERM.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

from pipeline.flows import process


def main() -> None:
    """Run the flow, and end with its exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    command = [sys.executable, "-m", "pipeline.flows.command", *sys.argv[1:]]
    flow = process.start(command, patience=process.FLOW_PATIENCE, env=process.environment())
    try:
        sys.exit(flow.wait())
    finally:
        process.stop(flow)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
