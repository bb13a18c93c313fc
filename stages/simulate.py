"""Measurements of the validation and test images."""

from __future__ import annotations

import argparse
import shutil

from elder.problems.samples import measurements, save
from stages import command, inputs
from stages.samples import find_problem


def main(arguments: argparse.Namespace) -> None:
    """Measure validation and test images, with a fixed seed each. Training draws its own measurements, of patches."""
    problem = find_problem(arguments.problem)
    temporary = arguments.out.with_name(f".{arguments.out.name}-partial")
    shutil.rmtree(temporary, ignore_errors=True)
    counts = {}
    for stream, part in enumerate(("test", "validation")):
        names, images = inputs.clean_images(arguments.images, part)
        for sample in measurements(problem, names, images, stream=stream):
            save(temporary / part / f"{sample.name}.npz", problem, sample)
        counts[part] = len(names)
    shutil.rmtree(arguments.out, ignore_errors=True)
    temporary.rename(arguments.out)
    print(
        f"{problem.name}: {counts['validation']} validation and {counts['test']} test measurements in {arguments.out}"
    )


def nothing(arguments: argparse.Namespace) -> None:
    """An empty folder, for a problem that no cell uses."""
    arguments.out.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    command.run(main, unused=nothing, reads=("images",), writes=("out",), problem="the inverse problem")
