"""How training speeds up with processes: `python -m benchmarks.processes --runs 3`.

A batch of 8 pictures of 64x64 is shared by 1 and by 2 processes of one thread each, which send gradients by gloo. Each
count runs under torchrun; seconds are of 4 steps after one that warms up. More processes than free cores gain nothing.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.common import TRAINING, Row, main, pictures
from elder import problems, regularizers
from elder.backend import Compute
from elder.model.model import Hyperparameters, Model
from elder.training.draws import Ahead
from elder.training.finetune import progress
from elder.training.patches import Patches
from elder.training.pretrain import Pretraining, pretrain
from elder.training.processes import Processes, joined
from elder.training.settings import Finetuning
from elder.training.update import drawing, update

COUNTS = (1, 2)
NETWORK, STEPS = {"name": "dncnn", "width": 32, "depth": 5}, 4


def run(runs: int) -> Iterator[Row]:
    """The speed of each count over that of one process, for both trainings."""
    rounds = [[launched(count) for count in COUNTS] for _ in range(runs)]
    for number, training in enumerate(("pre-training", "DEQ training")):
        for place, count in enumerate(COUNTS[1:], 1):
            ratios = [times[0][number] / times[place][number] for times in rounds]
            case = f"{training}, {count} processes over 1"
            yield Row("processes", case, statistics.median(ratios), "times as fast", min(ratios), max(ratios))


def launched(count: int) -> list[float]:
    """Seconds of each training with `count` processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "-m", "benchmarks.processes", "one"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return [float(word) for word in done.stdout.split()[-2:]]


def timed(train: Callable[[int], None]) -> float:
    """Seconds of `STEPS` steps beyond the first."""
    train(1)
    start = time.perf_counter()
    train(STEPS)
    return time.perf_counter() - start


def both(processes: Processes) -> list[float]:
    """Seconds of pre-training and of DEQ training."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    denoiser = regularizers.make("least_squares", NETWORK)
    chosen = Model(problems.make("csmri", {"ratio": 0.2}), denoiser, Hyperparameters(0.01, 0.1, 100.0), {})
    patches = Patches(pictures(TRAINING, (256, 256)), 64, TRAINING)
    # No solve ends early, whatever the weights.
    settings = Finetuning(batch=8, patch=64, max_steps=12, tol=1e-12, warmup=0.0, learning_rate=1e-9, tuning_rate=1e-9)

    def denoise(steps: int) -> None:
        pretrain(denoiser, patches, Pretraining(steps=steps, batch=8, patch=64), processes=processes)

    def finetune(steps: int) -> None:
        now = progress(chosen, settings, processes)
        with Ahead(drawing(chosen, patches, settings), torch.Generator().manual_seed(settings.seed), steps) as draws:
            for now.step in range(1, steps + 1):
                update(now, chosen, draws.take(now.step), settings)

    return [timed(denoise), timed(finetune)]


if __name__ == "__main__":
    if sys.argv[1:] == ["one"]:
        with joined(Compute()) as (together, _):
            seconds = both(together)
            if together.first:
                print(*seconds)
    else:
        main(run, __doc__, runs=3)
