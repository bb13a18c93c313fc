"""What pydantic finds wrong with params.yaml, said in one line in the words of that file."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
# What a setting must be, by the type of the error; names in braces are those of the error's context.
WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a section of settings",
    "dataclass_type": "a section of settings",
    "model_type": "a section of settings",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "a list that is not empty",
}


def first(error: ValidationError, model: type[BaseModel], where: str = "") -> str:
    """What is wrong first: an unknown setting, since a misspelled one is missing too; else in the order of the fields.

    where: the path that stands for the first name of each location, if it is not one of params.yaml.
    """
    found = min(error.errors(include_url=False), key=lambda details: details["type"] not in UNKNOWN)
    location, context = found["loc"], found.get("ctx", {})
    path = dotted(location, where)
    if found["type"] in UNKNOWN:
        return unknown(path, names(model, location[:-1]))
    if found["type"] == "missing":
        return f"{path.rpartition('.')[0] or 'needs a section'} {'lacks ' if '.' in path else ''}{location[-1]}"
    if found["type"] == "value_error":
        return below(path, str(context["error"]))
    wanted = WANTED[found["type"]].format(**context) if found["type"] in WANTED else found["msg"]
    return f"{path}={found['input']!r} must be {wanted}"


def below(path: str, message: str) -> str:
    """A message of the library, which knows no paths, below the path of its section: `finetune.steps=0 must be ...`."""
    return f"{path}{'.' if message.partition('=')[0].isidentifier() else ': '}{message}"


def unknown(path: str, known: Sequence[str]) -> str:
    """A setting that does not exist, those that do, and the one that was probably meant."""
    parent, _, name = path.rpartition(".")
    close = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown {'setting' if parent else 'section'} {path}; known are {', '.join(sorted(known))}{hint}"


def dotted(location: Sequence[str | int], where: str) -> str:
    """A location as it would be written: prepare.train_scales[1]."""
    steps = [where, *location[1:]] if where else location
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def names(kind: Any, location: Sequence[str | int]) -> list[str]:
    """The settings that the section at `location` below a record may have."""
    for step in location:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (list, dict):
            kind = arguments[-1]
        elif dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind)[str(step)]
        else:
            kind = next(f.annotation for name, f in kind.model_fields.items() if (f.alias or name) == step)
    if dataclasses.is_dataclass(kind):
        return [f.name for f in dataclasses.fields(kind)]
    return [f.alias or name for name, f in kind.model_fields.items()]
