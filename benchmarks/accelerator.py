"""What training takes on an accelerator, and in lower precision: `python -m benchmarks.accelerator --device cuda`.

DRUNet 32-64-128-256 on pictures of 256x256: steps a second of pre-training with 8 patches, and of DEQ training of
CS-MRI at 20 % with 4 patches and 12 forward steps; the time of both in bf16 and tf32 over that in float32; and the
share of the time in which the device computes, from PyTorch's profiler. With deepinv (`pip install -e '.[bench]'`), a
DEQ step of both libraries on two such pictures at equal accuracy, as in `benchmarks.peer`. `--device cpu` gives what a
GPU is to be compared with.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from benchmarks import peer
from benchmarks.common import TRAINING, Row, counted, model, paired, parser, pictures, record, shown, summarized, timed
from benchmarks.training import stepping
from elder.backend import Compute
from elder.errors import UserError
from elder.model.model import Model
from elder.training.patches import Patches
from elder.training.pretrain import Pretraining, pretrain
from elder.training.settings import Finetuning

NETWORK, SIDE = "DRUNet 32-64-128-256", 256
PRETRAIN = Pretraining(batch=8, patch=SIDE, learning_rate=1e-9)
# No solve ends early, whatever the weights.
FINETUNE = Finetuning(
    batch=4, patch=SIDE, max_steps=12, tol=1e-12, warmup=0.0, learning_rate=1e-9, tuning_rate=1e-9, stability_every=1
)
# Of a call on a processor, and on an accelerator, where the wait for the first draw must not count.
STEPS, MANY_STEPS = 2, 20


def run(runs: int, device: str) -> Iterator[Row]:
    """The figures of one device."""
    accelerated = torch.device(device).type != "cpu"
    steps = MANY_STEPS if accelerated else STEPS
    precisions = ("bf16", "tf32") if accelerated else ("bf16",)
    for title, make in (("pre-training", denoising), ("DEQ training", finetuning)):
        plain = make(Compute(device), steps)
        case = f"{title}, {NETWORK}, {SIDE}x{SIDE}, {device}"
        plain()
        seconds = [timed(plain) for _ in range(runs)]
        yield summarized("accelerator", case, [steps / each for each in seconds], "steps a second")
        others = [make(Compute(device, precision), steps) for precision in precisions]
        for precision, ratios in zip(precisions, paired(plain, *others, runs=runs), strict=True):
            yield summarized("accelerator", f"{case}, {precision}", ratios, "of the time in float32")
        if torch.device(device).type == "cuda":
            yield counted("accelerator", f"{case}, device computes", busy(plain), "of the time")
    if importlib.util.find_spec("deepinv"):
        chosen = on(Compute(device))
        for row in peer.training(f"csmri 20 %, {NETWORK}, {device}", chosen, runs, SIDE):
            yield replace(row, benchmark="accelerator")
    else:
        print("deepinv is not installed: no DEQ step beside it")


def on(compute: Compute) -> Model:
    """CS-MRI with the trained energy, placed as `compute` says."""
    return model(NETWORK, "csmri", ratio=0.2).on(compute)


def denoising(compute: Compute, steps: int) -> Callable[[], object]:
    """Steps of pre-training."""
    regularizer = on(compute).regularizer
    patches = Patches(pictures(TRAINING, (SIDE, SIDE)), SIDE, TRAINING)
    return lambda: pretrain(regularizer, patches, replace(PRETRAIN, steps=steps), precision=compute.precision)


def finetuning(compute: Compute, steps: int) -> Callable[[], object]:
    """Steps of DEQ training."""
    return stepping(on(compute), FINETUNE, steps)


def busy(steps: Callable[[], object]) -> float:
    """The share of the time of a call in which at least one kernel runs on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds = timed(steps)
    kernels = [event.time_range for event in profile.events() or () if event.device_type.name == "CUDA"]
    return covered([(each.start, each.end) for each in kernels]) / 1e6 / seconds


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def main() -> None:
    """The command."""
    chosen = parser(__doc__, runs=5)
    chosen.add_argument("--device", default="auto", help="cuda, cuda:1, mps, cpu or auto (default: %(default)s)")
    arguments = chosen.parse_args()
    try:
        device = Compute(arguments.device).device
    except UserError as error:
        chosen.error(str(error))
    record(shown(run(arguments.runs, device)), whole=False)


if __name__ == "__main__":
    main()
