"""A Dask cluster on Slurm for the matrix: `python docs/examples/slurm.py`, on a node that may call sbatch.

Each job is one worker with one GPU, and trains one cell at a time. Start this, and leave it running. Then, in the
project's folder: `python -m pipeline.flows --runner dask --address tcp://THIS-HOST:8786`. Jobs are queued when there
are cells to train, at most `JOBS` of them, and end when there are none.
"""

import signal
import sys
from pathlib import Path

from dask_jobqueue import SLURMCluster

PROJECT = Path(__file__).resolve().parents[2]
PORT = 8786
JOBS = 32


def cluster(port: int = PORT) -> SLURMCluster:
    """A scheduler here, and no job yet."""
    return SLURMCluster(
        # What Slurm gives to a job. Adapt these to your site.
        queue="gpu",
        walltime="24:00:00",
        memory="32GB",
        job_cpu=8,
        job_extra_directives=["--gres=gpu:1"],
        # One worker of one thread: one cell at a time.
        cores=1,
        processes=1,
        python=sys.executable,
        job_script_prologue=[f"cd {PROJECT}", f"export PYTHONPATH={PROJECT}"],
        # A worker ends before Slurm would kill it; what it trained resumes on another one.
        worker_extra_args=["--lifetime", "23h30m"],
        scheduler_options={"port": port, "dashboard_address": "127.0.0.1:0"},
    )


if __name__ == "__main__":
    with cluster() as made:
        made.adapt(minimum=0, maximum_jobs=JOBS)
        print(f"the scheduler: {made.scheduler_address}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
