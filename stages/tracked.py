"""The run, the reports and the checkpoint of a training, in the process that keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from elder.training.checkpoint import Checkpoint
from elder.training.history import Report, silent
from elder.training.processes import Processes
from pipeline.tracking import logs
from pipeline.tracking.fingerprints import Reads
from pipeline.tracking.logs import Log


@contextmanager
def training(
    processes: Processes, title: str, params: Mapping[str, Any], reads: Reads, *, steps: int, every: int
) -> Iterator[tuple[Log, Report, Checkpoint | None]]:
    """As `logs.training` in the first process. The others log nothing, report nothing and have no checkpoint."""
    if processes.first:
        with logs.training(title, params, reads, steps=steps, every=every) as kept:
            yield kept
    else:
        yield Log(None, ""), silent, None
