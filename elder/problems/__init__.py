"""Inverse problems by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elder.errors import UserError
from elder.problems.base import Problem
from elder.problems.csmri import CSMRI
from elder.problems.denoise import Denoise

PROBLEMS: dict[str, type[Problem]] = {problem.name: problem for problem in (CSMRI, Denoise)}


def make(name: str, settings: Mapping[str, Any] | None = None) -> Problem:
    """The problem `name` with `settings` over its defaults. Raises `UserError` for an unknown name or setting."""
    if name not in PROBLEMS:
        raise UserError(f"unknown problem {name!r}: there are {', '.join(sorted(PROBLEMS))}")
    return PROBLEMS[name]().override(settings or {})


__all__ = ["CSMRI", "PROBLEMS", "Denoise", "Problem", "make"]
