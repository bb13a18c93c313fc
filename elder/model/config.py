"""What config.json of a bundle may hold: sections, names and types, checked before anything is made of them."""

from __future__ import annotations

import inspect
import re
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from elder import io
from elder.errors import UserError
from elder.networks import NETWORKS
from elder.regularizers import OF_FILTERS, OVER_A_NETWORK

FORMAT = 1
# Bytes of the file. Those of this project have some thousands, most of them in `metadata`.
LARGEST = 2**20
# The sections, and which of them may be missing: a pre-trained regularizer has no problem and no hyperparameters yet.
SECTIONS = {"format": int, "regularizer": dict, "problem": dict, "tuning": dict, "metadata": dict, "files": list}
OPTIONAL = {"problem", "tuning", "metadata", "files"}
PROBLEM = {"name": str, "settings": dict}
LONGEST_PATH = 200  # characters of the dotted path of a class
# The dotted path of a class; and text that names no file, such as the kind of a mask that is drawn.
DOTTED, WORD = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII), re.compile(r"[\w-]+", re.ASCII)


def read(path: str | Path) -> dict[str, Any]:
    """The checked content of config.json.

    Settings of the problem are checked where its class is known, by `model.load`. Raises `UserError`, which names the
    first section or setting that is unknown, missing or of another type.
    """
    config = io.read_json(path, LARGEST)
    if not isinstance(config, dict):
        raise UserError("config.json holds no object with names")
    if config.get("format") != FORMAT:
        raise UserError(f"bundle format {reprlib.repr(config.get('format'))}, but this version of elder reads {FORMAT}")
    _check("", config, SECTIONS, OPTIONAL)
    _check_regularizer(config["regularizer"])
    if ("problem" in config) != ("tuning" in config):
        raise UserError(f"config.json: {'tuning' if 'problem' in config else 'problem'} is missing")
    settings: dict[str, Any] = {}
    if "problem" in config:
        _check("problem.", config["problem"], PROBLEM)
        settings = config["problem"]["settings"]
    own = settings.get("class", "a.Class")
    if not isinstance(own, str) or not DOTTED.fullmatch(own) or len(own) > LONGEST_PATH:
        raise UserError("config.json: problem.settings.class must be the dotted path of a class")
    for name in config.get("files", []):
        if not isinstance(name, str) or not name.isidentifier() or name not in settings:
            raise UserError(f"config.json: files: {reprlib.repr(name)} is no setting of the problem")
    return config


def check_settings(where: str, given: Mapping[str, Any], make: Callable[..., object]) -> None:
    """Raise `UserError` for the first setting that `make` does not take, needs and lacks, or takes in another type.

    where: the section in config.json. make: a class whose constructor takes the settings.
    """
    taken = inspect.signature(make).parameters
    hints = typing.get_type_hints(make if is_dataclass(make) else make.__init__)
    optional = {name for name, parameter in taken.items() if parameter.default is not parameter.empty}
    _check(f"{where}.", given, {name: hints[name] for name in taken}, optional)


def check_words(where: str, settings: Mapping[str, Any]) -> None:
    """Raise `UserError` for the first setting that names a file. A bundle holds its files, and chooses no others."""
    for name, value in settings.items():
        if isinstance(value, str) and not WORD.fullmatch(value):
            raise UserError(
                f"config.json: {where}.{name}={value!r} names a file that the bundle does not hold: give one as a "
                f"setting, --set {name}=FILE"
            )


def _check_regularizer(described: Mapping[str, Any]) -> None:
    name, made = described.get("name"), {key: value for key, value in described.items() if key != "name"}
    if not isinstance(name, str) or name not in {**OVER_A_NETWORK, **OF_FILTERS}:
        known = ", ".join(sorted({**OVER_A_NETWORK, **OF_FILTERS}))
        raise UserError(f"config.json: regularizer.name={reprlib.repr(name)} must be one of {known}")
    if name in OF_FILTERS:
        return check_settings("regularizer", made, OF_FILTERS[name])
    _check("regularizer.", made, {"network": dict})
    network = dict(made["network"])
    kind = network.pop("name", None)
    if not isinstance(kind, str) or kind not in NETWORKS:
        known = ", ".join(sorted(NETWORKS))
        raise UserError(f"config.json: regularizer.network.name={reprlib.repr(kind)} must be one of {known}")
    return check_settings("regularizer.network", network, NETWORKS[kind])


def _check(prefix: str, given: Mapping[str, Any], known: Mapping[str, Any], optional: Set[str] = frozenset()) -> None:
    for name, value in given.items():
        if name not in known:
            raise UserError(f"config.json: {prefix}{name} is unknown; known are {', '.join(known)}")
        if not _fits(value, known[name]):
            wanted = known[name].__name__ if isinstance(known[name], type) else str(known[name])
            wanted = wanted.removeprefix("collections.abc.")
            raise UserError(f"config.json: {prefix}{name}={reprlib.repr(value)} must be of type {wanted}")
    for name in known:
        if name not in given and name not in optional:
            raise UserError(f"config.json: {prefix}{name} is missing")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON has the type; a whole number is a float, and a truth value is no number."""
    if typing.get_origin(hint) is Sequence:
        return isinstance(value, list) and all(_fits(part, typing.get_args(hint)[0]) for part in value)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    return type(value) is hint or (hint is float and type(value) is int)
