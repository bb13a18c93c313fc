"""A Prefect worker that ends with what it works on: `python -m pipeline.worker`.

It is `prefect worker start --pool elder`, which waits for its runs before it ends: as long as a training takes. This
one ends them at SIGTERM or Ctrl-C within seconds. A run reports `Crashed`, and the next one resumes its training.
Killed, it leaves nothing running either.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from pipeline.flows import health, process


def main() -> None:
    """Work until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default="elder", help="the work pool, elder by default, as in prefect.yaml")
    parser.add_argument("--limit", type=int, default=2, help="runs at once; 2 by default: a training, and a look at it")
    arguments = parser.parse_args()
    if url := os.environ.get("PREFECT_API_URL"):
        health.check(url, "worker")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    command = ["prefect", "worker", "start", "--pool", arguments.pool, "--limit", str(arguments.limit)]
    # Prefect's worker would wait for its runs, so they get the signal first.
    worker = process.start(command, patience=process.FLOW_PATIENCE, children_first=True, env=process.environment())
    try:
        sys.exit(worker.wait())
    finally:
        process.stop(worker)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


if __name__ == "__main__":
    main()
