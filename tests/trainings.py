"""The trainings of test_processes: `torchrun --nproc-per-node N tests/trainings.py OUT STEPS` writes what they gave."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from elder import io, problems, regularizers
from elder.backend import Compute
from elder.model.model import Hyperparameters, Model
from elder.problems.csmri import CSMRI
from elder.problems.samples import measure
from elder.training.checkpoint import Checkpoint
from elder.training.finetune import finetune
from elder.training.patches import Patches
from elder.training.pretrain import Pretraining, pretrain
from elder.training.processes import Processes, joined
from elder.training.settings import Finetuning

DESCRIPTION = {"name": "least_squares", "network": {"name": "dncnn", "channels": 1, "width": 4, "depth": 2}}
IMPLICIT = {**DESCRIPTION, "name": "implicit"}


class Spoilt(CSMRI):
    """The last measurement of each batch is so large that its solve does not end."""

    def simulate(self, x, generator):
        operator, y = super().simulate(x, generator)
        y[-1] *= 1e6
        return operator, y


def smooth_pictures(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Four pictures, (1, 1, 32, 40)."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(1, 1, 4, 5, generator=generator, dtype=dtype) for _ in range(4)]
    return [torch.nn.functional.interpolate(x, scale_factor=8, mode="bicubic").clamp(0, 1) for x in images]


def trainings(folder: Path, processes: Processes, steps: int, *, whole: bool = True) -> dict[str, list]:
    """The histories of some trainings, and of those that resume what another call left in `folder`/resumed, if any.

    A batch of 5 does not divide evenly. Checkpoints of two steps before the end are left in `folder`/left. DEQ training
    is in double precision, since rounding grows from step to step. whole: false for the resumed ones alone.
    """
    patches = Patches(smooth_pictures(), 16, list("abcd"))
    left, resumed = folder / "left", folder / "resumed"

    def pretrained(checkpoint: Checkpoint) -> list:
        torch.manual_seed(1)
        settings = Pretraining(steps=steps, batch=5, patch=16, learning_rate=5e-3)
        kept = checkpoint if processes.first else None
        return pretrain(
            regularizers.make(**DESCRIPTION), patches, settings, checkpoint=kept, processes=processes
        ).history.rows

    found = {}
    if whole:
        found["pretrain"] = pretrained(Checkpoint(left / "pretrain", every=steps - 2))
    if resumed.exists():
        found["pretrain, resumed"] = pretrained(Checkpoint(resumed / "pretrain", every=steps))
    denoisers = []
    for description in (DESCRIPTION, IMPLICIT):
        torch.manual_seed(1)
        denoisers.append(regularizers.make(**description))
        pretrain(denoisers[-1], patches, Pretraining(steps=20, batch=4, patch=16, learning_rate=5e-3))
    torch.set_default_dtype(torch.float64)
    energy, residual = (denoiser.double().eval().requires_grad_(False) for denoiser in denoisers)
    images = [x.double() for x in smooth_pictures()]
    patches = replace(patches, images=images)
    problem = problems.make("csmri", {"ratio": 0.4, "seed": 5})
    validation = measure(problem, list("abc"), images[:3])
    tuned = Hyperparameters(0.1, 0.1, 10.0, tol=1e-4, max_steps=20)
    before = Model(problem, energy, tuned, DESCRIPTION)
    # The line search shortens so long a first step, and λτ moves from step to step.
    long = replace(before, hyperparameters=replace(tuned, step=500.0))
    without_energy = Model(problem, residual, tuned, IMPLICIT)
    usual = Finetuning(
        steps=steps, batch=5, patch=16, validate_every=steps // 2, learning_rate=1e-3, max_steps=8, adjoint_steps=8
    )
    errors = replace(usual, steps=4, batch=3, validate_every=2, loss="mse", stability=0.6)
    skipping = replace(usual, steps=4, batch=2, validate_every=4, fallback="skip", max_steps=30, adjoint_steps=30)

    def finetuned(settings: Finetuning, checkpoint: Checkpoint | None = None, start: Model = long, **options) -> list:
        kept = checkpoint if processes.first else None
        return finetune(
            start, patches, validation, settings, checkpoint=kept, processes=processes, **options
        ).history.rows

    if whole:
        found["finetune"] = finetuned(usual, Checkpoint(left / "finetune", every=steps - 2))
        found["mse"] = finetuned(errors)
        found["implicit"] = finetuned(replace(skipping, batch=5), start=without_energy)
        found["skip"] = finetuned(skipping, start=before, drawn=[Spoilt(ratio=0.4, seed=5)])
    if resumed.exists():
        found["finetune, resumed"] = finetuned(usual, Checkpoint(resumed / "finetune", every=steps))
    return found


if __name__ == "__main__":
    # A share of 2 images is one part, that of 3 is two.
    with joined(Compute(micro_batch=2)) as (together, _):
        results = trainings(Path(sys.argv[1]), together, int(sys.argv[2]))
        if together.first:
            io.write_json(Path(sys.argv[1]) / "results.json", results)
