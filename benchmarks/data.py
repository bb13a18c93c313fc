"""How `prepare` and the memory of training grow with the number of pictures: `python -m benchmarks.data`.

Generated pictures of 64x64 in files of their own, 2,500 and 5,000 of them. Each count runs in processes of its own,
since a process's peak never falls; seconds are of processor time.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.common import Row, counted, main
from benchmarks.memory import ALLOCATOR
from elder import regularizers
from elder.training.pretrain import Pretraining, pretrain
from pipeline.settings import params
from stages.patches import read_patches
from stages.prepare import prepare

COUNTS = (2500, 5000)
QUIET = {"TQDM_DISABLE": "1"}


def run(runs: int) -> list[Row]:
    """The growth from the first count to the second."""
    found = {}
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder) / "in", count)
            found[count] = [child(task, folder) for task in ("prepare", "train")]
    (prepare_few, train_few), (prepare_many, train_many) = found.values()
    growth = f"{COUNTS[1]} pictures over {COUNTS[0]}"
    return [
        counted("data", f"prepare, {COUNTS[1]} pictures, processor time", prepare_many[0], "s"),
        counted("data", f"prepare, {COUNTS[1]} pictures, peak", prepare_many[1], "MiB"),
        counted("data", f"prepare, processor time, {growth}", prepare_many[0] / prepare_few[0], "", 2.2),
        counted("data", f"prepare, peak memory, {growth}", prepare_many[1] / prepare_few[1], "", 1.1),
        counted("data", f"training, peak memory, {growth}", train_many[1] / train_few[1], "", 1.05),
    ]


def child(task: str, folder: str) -> tuple[float, float]:
    """Processor seconds and peak in MiB of a task."""
    command = [sys.executable, "-m", "benchmarks.data", task, folder]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **ALLOCATOR, **QUIET}
    )
    seconds, peak = map(float, done.stdout.split()[-2:])
    return seconds, peak


def generate(folder: Path, count: int) -> None:
    """Pictures of which no two look the same."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray((rng.random((9, 9)) * 255).astype(np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{index:06}.png")


def prepared(folder: Path) -> None:
    """What the stage `prepare` does."""
    usual = params.read().prepare
    change = {"source": "folder", "folder": str(folder / "in"), "shorter_side": 48, "train_scales": [1.0]}
    prepare(usual.model_copy(update=change), folder / "prepared")


def trained(folder: Path) -> None:
    """Some steps of pre-training on the pictures that were prepared."""
    patches = read_patches(folder / "prepared", 32)
    torch.manual_seed(0)
    energy = regularizers.make("least_squares", {"name": "dncnn", "width": 16, "depth": 4})
    pretrain(energy, patches, replace(Pretraining(), steps=20, batch=8, patch=32))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in ("prepare", "train"):
        began = time.process_time()
        {"prepare": prepared, "train": trained}[sys.argv[1]](Path(sys.argv[2]))
        print(time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    else:
        main(run, __doc__, runs=1)
