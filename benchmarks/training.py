"""What a step of DEQ training costs: `python -m benchmarks.training`.

The same step twice, at equal numbers of forward steps: with the gradient of pictures whose solve failed and the penalty
on the spectral radius, as the settings have it, and with neither. CS-MRI at 20 %, 4 pictures of 64x64. The penalty
falls on every second step, so a run is two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from benchmarks.common import NETWORKS, TRAINING, Row, main, model, paired, pictures, summarized
from elder.model.model import Model
from elder.training.draws import Ahead
from elder.training.finetune import progress
from elder.training.patches import Patches
from elder.training.settings import Finetuning
from elder.training.update import drawing, update

AS_IT_IS = Finetuning(batch=4, patch=64, tol=3e-4, max_steps=12, warmup=0.0, learning_rate=1e-9, tuning_rate=1e-9)
BEFORE = replace(AS_IT_IS, stability=0.0, fallback="skip")


def run(runs: int) -> Iterator[Row]:
    """The ratio of both, for each network."""
    for title in NETWORKS:
        chosen = model(title, "csmri", ratio=0.2)
        (ratios,) = paired(stepping(chosen, BEFORE), stepping(chosen, AS_IT_IS), runs=runs)
        yield summarized("training", f"DEQ step, {title}", ratios, "of the time without penalty and fallback", 1.3)


def stepping(chosen: Model, settings: Finetuning, count: int = 2) -> Callable[[], None]:
    """Some steps of training on the same patches, whatever was called before. The rates are too small to move θ."""
    make = drawing(chosen, Patches(pictures(TRAINING, (256, 256)), settings.patch, TRAINING), settings)

    def steps() -> None:
        now, generator = progress(chosen, settings), torch.Generator().manual_seed(settings.seed)
        with Ahead(make, generator, count) as draws:
            for now.step in range(1, count + 1):
                update(now, chosen, draws.take(now.step), settings)

    return steps


if __name__ == "__main__":
    main(run, __doc__, runs=5)
