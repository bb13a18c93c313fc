"""The problems of params.yaml, and reading what `simulate` wrote."""

from __future__ import annotations

from pathlib import Path

from elder import problems
from elder.measurements import Measured, read_all
from elder.problems.base import Problem
from stages import prepared, settings


def problem(name: str) -> Problem:
    """The problem of that name, with its settings."""
    return problems.make(name, settings.section("problems", name))


def measured(images: Path, measurements: Path, part: str, chosen: Problem) -> list[Measured]:
    """The measurements of a split with their clean images."""
    _, truths = prepared.images(images, part)
    return read_all(measurements / part, chosen, truths)
