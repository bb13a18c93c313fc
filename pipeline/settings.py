"""params.yaml, checked: an unknown key or a wrong type ends a stage before it starts."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from elder.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """What is trained and compared; finetune: settings of its own in that section.

    training_problem: settings of the problem that change where training draws its measurements, on patches.
    """

    problem: str
    regularizer: str
    finetune: dict[str, Any] = field(default_factory=dict)
    training_problem: dict[str, Any] = field(default_factory=dict)


def section(*path: str) -> dict[str, Any]:
    """The section of params.yaml at `path`. Raises `UserError` when it is missing or not a section."""
    node: Any = _whole()
    for depth, key in enumerate(path):
        if not isinstance(node, Mapping) or key not in node:
            raise UserError(f"params.yaml: needs a section {'.'.join(path[: depth + 1])}")
        node = node[key]
    if not isinstance(node, Mapping):
        raise UserError(f"params.yaml: {'.'.join(path)} must be a section of settings; got {node!r}")
    return dict(node)


def typed(cls: type[T], *path: str, over: Mapping[str, Any] | None = None) -> T:
    """The section at `path`, with the settings in `over` laid over it, as the dataclass `cls`.

    Raises `UserError` for an unknown or missing key, or a wrong type.
    """
    name, given = ".".join(path), {**section(*path), **(over or {})}
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key, value in given.items():
        if key not in fields:
            raise UserError(f"params.yaml: unknown setting {name}.{key}; known are {', '.join(sorted(fields))}")
        if not _fits(value, hints[key]):
            raise UserError(f"params.yaml: {name}.{key}={value!r} must be {_spelled(hints[key])}")
    unset = dataclasses.MISSING
    missing = [
        key for key, f in fields.items() if key not in given and f.default is unset and f.default_factory is unset
    ]
    if missing:
        raise UserError(f"params.yaml: {name} lacks {', '.join(missing)}")
    return cls(**given)


def cell(name: str) -> Cell:
    """The cell of that name."""
    return typed(Cell, "cells", name)


@lru_cache(maxsize=1)
def _whole() -> Any:
    # Read once: a stage's settings do not change under it.
    try:
        return yaml.load(Path("params.yaml").read_text(), yaml.CSafeLoader)
    except FileNotFoundError:
        raise UserError("params.yaml: not here; run from the project's folder") from None
    except yaml.YAMLError as error:
        raise UserError(f"params.yaml: not valid YAML ({str(error).splitlines()[0]})") from None


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return any(_fits(value, option) for option in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def _spelled(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return " or ".join(_spelled(option) for option in arguments)
    if origin is list:
        return f"a list, each {_spelled(arguments[0])}"
    if origin is dict:
        return f"a section, each {_spelled(arguments[1])}"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false", Any: "a value"}[hint]
