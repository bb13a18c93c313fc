"""Beartype as jaxtyping's import hook calls it, so that the tests check the types and shapes of the library."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import install_import_hook

# The rooms whose annotations are checked: the numerics.
ROOMS = (
    *("fidelity", "implicit", "linear", "networks", "objective", "operators", "problems", "regularizers", "solvers"),
    *("spectral", "stability", "tensors"),
)
# As pyright has it, an int is a float. `Self` has no meaning for a function, and jaxtyping hands functions over.
CONFIGURATION = BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: Any}))
# A check takes longer than an operation on a tiny picture. Each test checks the first calls of every function, and not
# the later ones, which a loop repeats.
CALLS = 4

_calls: Counter[str] = Counter()
_done: list[Any] = []


def check(function: Callable[..., Any]) -> Callable[..., None]:
    """Check the parameters of a function, or its result: jaxtyping makes one function for each.

    The one for the result has the parameters too. They have been checked by then, and their sizes are remembered.
    """
    of_parameters = function.__annotations__.get("return", Any) is Any
    if not of_parameters:
        function.__annotations__ = {"return": function.__annotations__["return"]}
    checked = beartype(conf=CONFIGURATION)(function)
    name = f"{function.__module__}:{function.__qualname__}"

    def first(*args: object, **kwargs: object) -> None:
        if of_parameters:
            _calls[name] += 1
        if _calls[name] <= CALLS:
            checked(*args, **kwargs)
        elif of_parameters and "<locals>" not in name:
            _leave(name)

    return first


def restart() -> None:
    """Check the first calls again: for the next test."""
    for function in _done:
        del function.__no_type_check__
    _done.clear()
    _calls.clear()


def install() -> None:
    """Check the rooms from here on: call it before `elder` is imported."""
    install_import_hook([f"elder.{room}" for room in ROOMS], f"{__name__}.check")


def _leave(name: str) -> None:
    """Mark a function as `typing.no_type_check` does, by which jaxtyping calls it straight away."""
    module, path = name.split(":")
    found: Any = sys.modules[module]
    for part in path.split("."):
        found = inspect.getattr_static(found, part)
    found = found.fget if isinstance(found, property) else inspect.unwrap(getattr(found, "__func__", found))
    function = inspect.unwrap(found)
    if not hasattr(function, "__no_type_check__"):
        function.__no_type_check__ = True
        _done.append(function)
