"""Reading the samples that `simulate` wrote, and the problem that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from elder import problems
from elder.problems.base import Problem
from elder.problems.samples import Sample, read_all
from pipeline.settings import params
from stages import inputs


def find_problem(name: str) -> Problem:
    """The problem of that name, with its settings in params.yaml."""
    return problems.make(name, params.read().problem(name))


def read_samples(images: Path, measurements: Path, part: str, chosen: Problem) -> Sequence[Sample]:
    """The samples of a split: its clean images, each with its measurement."""
    names, truths = inputs.clean_images(images, part)
    return read_all(measurements / part, chosen, names, truths)
