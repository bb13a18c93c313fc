"""Inverse problems by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

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


def make(name: str, settings: Mapping[str, object] | None = None) -> Problem:
    """The problem `name` with `settings` over its defaults.

    Your own problem is named by `class` among the settings: the dotted path of a subclass of `Problem` whose
    `name` is `name`, in a module that can be imported. Raises `UserError` for an unknown name or setting.
    """
    given = dict(settings or {})
    return find(name, given.pop("class", None))().override(given)


def find(name: str, path: object = None) -> type[Problem]:
    """The class of the problem `name`: one of elder's, or that at the dotted path, whose module is imported.

    Raises `UserError` if there is none, or if its name is another.
    """
    if path is None and name not in PROBLEMS:
        raise UserError(
            f"unknown problem {name!r}: there are {', '.join(sorted(PROBLEMS))}; one of your own needs the setting "
            "class: the dotted path of its class"
        )
    return PROBLEMS[name] if path is None else _own(name, path)


def _own(name: str, path: object) -> type[Problem]:
    module, _, attribute = str(path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute) if module else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"class={path} of {name}: can't be imported ({error})") from None
    if not (isinstance(found, type) and issubclass(found, Problem)):
        raise UserError(f"class={path} of {name}: must be the dotted path of a subclass of elder.problems.Problem")
    if found.name != name:
        raise UserError(f"class={path}: its name is {found.name!r}, not {name!r}; they must agree")
    return found


__all__ = ["CSMRI", "CT", "PROBLEMS", "Deblur", "Denoise", "Inpaint", "Problem", "SuperResolution", "find", "make"]
