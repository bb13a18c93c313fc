"""A stage in several processes of this machine, as torchrun would start them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence


def is_member() -> bool:
    """Whether this process is one of several that run a stage together."""
    return "WORLD_SIZE" in os.environ


def run(stage: str, arguments: Sequence[str], count: int) -> None:
    """Run `python -m stages.STAGE ARGUMENTS` in `count` processes, and end with the exit code of the first that fails.

    Each has one thread, unless OMP_NUM_THREADS says otherwise. Raises `ChildProcessError` if one is killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # A stage says itself why it fails, and is no news when it is ended.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    place = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "max_restarts": 0}
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=stage, **place)
    sys.stdout.flush()
    try:
        elastic_launch(config, sys.executable)("-m", f"stages.{stage}", *arguments)
    except SignalException as ended:
        sys.exit(128 + ended.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise ChildProcessError(f"process {rank} of {count} was ended by signal {-failure.exitcode}") from None
        sys.exit(failure.exitcode)
