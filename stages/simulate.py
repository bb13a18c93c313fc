"""Measurements of the validation and test images, and the description of the training simulation."""

from __future__ import annotations

import argparse
import shutil

import torch

from elder import io
from elder.problems.base import Problem
from elder.problems.samples import measure, save
from elder.training.patches import Patches
from stages import command, inputs
from stages.samples import find_problem


def main(arguments: argparse.Namespace) -> None:
    """Measure validation and test images with fixed seeds; describe how training measurements are drawn."""
    problem = find_problem(arguments.problem)
    temporary = arguments.out.with_name(f".{arguments.out.name}-partial")
    shutil.rmtree(temporary, ignore_errors=True)
    counts = {}
    for part in ("validation", "test"):
        names, images = inputs.clean_images(arguments.images, part)
        for sample in measure(problem, names, images):
            save(temporary / part / f"{sample.name}.npz", problem, sample)
        counts[part] = len(names)
    names, images = inputs.clean_images(arguments.images, "train")
    side = min(min(image.shape[-2:]) for image in images)
    io.write_json(temporary / "training.json", describe(problem, Patches(images, side, names)))
    shutil.rmtree(arguments.out, ignore_errors=True)
    temporary.rename(arguments.out)
    print(
        f"{problem.name}: {counts['validation']} validation and {counts['test']} test measurements in {arguments.out}"
    )


def describe(problem: Problem, patches: Patches) -> dict[str, object]:
    """What fine-tuning draws at every step, with the numbers of one draw."""
    generator = torch.Generator().manual_seed(problem.seed)
    x = patches.draw(1, generator)
    operator, y = problem.simulate(x, generator)
    start = problem.initial(operator, y)
    return {
        "problem": problem.name,
        "settings": problem.settings,
        "drawn": "for each patch, at every step: an operator and noise, from the seed of finetune",
        "images": len(patches.images),
        "example": {
            "image": list(x.shape[1:]),
            "measurement": list(y.shape[1:]),
            "dtype": str(y.dtype).removeprefix("torch."),
            "mse_initial": float((start - x).square().mean()),
        },
    }


if __name__ == "__main__":
    command.run(main, reads=("images",), writes=("out",), problem="the inverse problem")
