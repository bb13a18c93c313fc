"""Inverse problems by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elder.errors import UserError
from elder.problems.base import Problem
from elder.problems.csmri import CSMRI
from elder.problems.ct import CT
from elder.problems.deblur import Deblur
from elder.problems.denoise import Denoise
from elder.problems.inpaint import Inpaint
from elder.problems.superres import SuperResolution

PROBLEMS: dict[str, type[Problem]] = {
    problem.name: problem for problem in (CSMRI, CT, Deblur, Denoise, Inpaint, SuperResolution)
}


def make(name: str, settings: Mapping[str, Any] | None = None) -> Problem:
    """The problem `name` with `settings` over its defaults. Raises `UserError` for an unknown name or setting."""
    if name not in PROBLEMS:
        raise UserError(f"unknown problem {name!r}: there are {', '.join(sorted(PROBLEMS))}")
    return PROBLEMS[name]().override(settings or {})


__all__ = ["CSMRI", "CT", "PROBLEMS", "Deblur", "Denoise", "Inpaint", "Problem", "SuperResolution", "make"]
