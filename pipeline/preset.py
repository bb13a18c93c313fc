"""Put a preset into params.yaml: `python -m pipeline.preset tiny`.

A preset is a file of presets/, laid over the defaults in params.yaml. What it names in `cells`, `problems`,
`regularizers` and `network` replaces those of the defaults; its other settings take the place of single ones. The
comments stay. While a preset is in force, presets/default.yaml keeps the defaults. Another preset is laid over them,
and `python -m pipeline.preset default` brings them back. Commit params.yaml and presets/default.yaml together.
"""

from __future__ import annotations

import argparse
import io
import itertools
import shutil
import sys
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from elder import command
from elder.errors import DataWarning, UserError
from elder.io import replacing

# What an error calls them; they are in the second file while a preset is in force.
DEFAULTS = "the defaults, in params.yaml or presets/default.yaml"
REPLACED = ("cells", "problems", "regularizers", "network")
# The first line of params.yaml while a preset is in force.
HEAD = "# The preset {}, over presets/default.yaml. `python -m pipeline.preset default` brings the defaults back.\n"


def main() -> None:
    """Write params.yaml of the folder that this is run in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", help=f"one of {', '.join(names(Path()))}")
    name = parser.parse_args().preset

    def work() -> None:
        apply(name, Path())
        print(f"params.yaml is now {name}: dvc repro runs it")

    sys.exit(command.run("preset", work))


def names(folder: Path) -> list[str]:
    """The presets of a project; `default` is one of them."""
    return sorted({"default", *(path.stem for path in (folder / "presets").glob("*.yaml"))})


def apply(name: str, folder: Path) -> None:
    """Write params.yaml of the project in `folder`, whole or not at all.

    Edits that were made while another preset was in force would be lost: they are kept in params.yaml.bak, or in
    params.yaml.bak.1 and so on, where that is taken. A params.yaml that names no preset may hold the defaults, those
    of another commit, say. What presets/default.yaml has kept is then out of date, and moved aside too.

    Raises `UserError` for an unknown preset, one that sets what the defaults lack, or defaults that are not there or no
    sections.
    """
    if name not in names(folder):
        raise UserError(f"unknown preset {name!r}: there are {', '.join(names(folder))}")
    target, defaults = folder / "params.yaml", folder / "presets" / "default.yaml"
    if in_force(folder) is None:
        kept = _free(folder / "params.yaml.bak")
        shutil.copy(target, kept)
        message = f"params.yaml was edited while a preset was in force: the edits are kept in {kept.name}"
        warnings.warn(message, DataWarning, stacklevel=2)
    if defaults.exists() and _holds_defaults(target, defaults):
        _move_aside(defaults, target)
    if name == "default":
        if defaults.exists():
            defaults.replace(target)
        return
    source, where = defaults if defaults.exists() else target, f"presets/{name}.yaml"
    text = HEAD.format(name) + overlaid(source.read_text(), (folder / where).read_text(), where)
    if source == target:
        with replacing(defaults) as temporary:
            shutil.copy(target, temporary)
    with replacing(target) as temporary:
        temporary.write_text(text)


def in_force(folder: Path) -> str | None:
    """The name of the preset that params.yaml of the project in `folder` holds, or `None` if it was edited since.

    It is `default` if params.yaml holds the defaults, whether they were edited or not.
    Raises `UserError` if params.yaml is that of a preset and the defaults below it are not there.
    """
    target, defaults = folder / "params.yaml", folder / "presets" / "default.yaml"
    if _holds_defaults(target, defaults):
        return "default"
    if not defaults.exists():
        raise UserError(
            "params.yaml is that of a preset, and presets/default.yaml, which keeps the defaults, is not here: commit "
            "both files where the preset was chosen, or take params.yaml from an earlier commit"
        )
    text = target.read_text()
    own = "".join(line for line in text.splitlines(keepends=True) if not _names_preset(line))
    below = defaults.read_text()
    for name in names(folder):
        where = f"presets/{name}.yaml"
        if name != "default" and overlaid(below, (folder / where).read_text(), where) == own:
            return name
    return None


def _move_aside(defaults: Path, target: Path) -> None:
    """Leave the place of presets/default.yaml to the defaults in params.yaml."""
    if defaults.read_text() == target.read_text():
        defaults.unlink()
        return
    kept = _free(defaults.with_suffix(".yaml.bak"))
    defaults.replace(kept)
    message = f"the defaults are those of params.yaml now; presets/default.yaml is kept as presets/{kept.name}"
    warnings.warn(message, DataWarning, stacklevel=3)


def _holds_defaults(target: Path, defaults: Path) -> bool:
    """Whether params.yaml names no preset, and begins with the comment of the defaults if a preset was chosen before.

    A tool that writes a preset without its comments leaves neither.
    """
    text = target.read_text()
    opening = defaults.read_text().partition("\n")[0] if defaults.exists() else ""
    return text.startswith(opening) and not _names_preset(text)


def _names_preset(text: str) -> bool:
    """Whether a line of the text of a params.yaml is `HEAD`."""
    return any(line.startswith(HEAD.partition("{}")[0]) for line in text.splitlines())


def _free(path: Path) -> Path:
    """The path, or the first of path.1, path.2, ... that is not taken."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(free for free in itertools.chain([path], numbered) if not free.exists())


def overlaid(defaults: str, preset: str, where: str) -> str:
    """The text of the defaults with a preset laid over it. where: what an error calls the preset.

    Raises `UserError` for a text that is not YAML or has no sections, and for a setting that the defaults lack.
    """
    yaml = YAML()
    yaml.width = 120
    params = _sections(yaml, defaults, DEFAULTS)
    for section, over in _sections(yaml, preset, where).items():
        if section not in params:
            raise UserError(f"{where}: unknown section {section}")
        if section in REPLACED or not isinstance(over, MutableMapping):
            params[section] = over
        elif not isinstance(params[section], MutableMapping):
            raise UserError(f"{DEFAULTS}: {section}: must hold settings")
        else:
            _merge(params[section], over, f"{where}: {section}")
    stream = io.StringIO()
    yaml.dump(params, stream)
    return stream.getvalue()


def _sections(yaml: YAML, text: str, where: str) -> MutableMapping[str, Any]:
    """The sections of a file. Raises `UserError` if it is not YAML, or has no sections."""
    try:
        found = yaml.load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        raise UserError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or error}{line})") from None
    if not isinstance(found, MutableMapping):
        raise UserError(f"{where}: must be sections of settings")
    return found


def _merge(settings: MutableMapping[str, Any], over: MutableMapping[str, Any], where: str) -> None:
    """Lay settings over a section, in place."""
    for key, value in over.items():
        if key not in settings:
            raise UserError(f"{where}.{key}: no such setting")
        settings[key] = value


if __name__ == "__main__":
    main()
