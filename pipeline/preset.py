"""Put a preset into params.yaml: `python -m pipeline.preset tiny`.

A preset is a file of presets/, laid over the defaults in params.yaml. What it names in `cells`, `problems`,
`regularizers` and `network` replaces those of the defaults; its other settings take the place of single ones. The
comments stay. While a preset is in force, presets/default.yaml keeps the defaults. Another preset is laid over them,
and `python -m pipeline.preset default` brings them back.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from elder import errors
from elder.errors import DataWarning, UserError
from elder.io import replacing

REPLACED = ("cells", "problems", "regularizers", "network")


def main() -> None:
    """Write params.yaml of the folder that this is run in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", help=f"one of {', '.join(names(Path()))}")
    name = parser.parse_args().preset

    def work() -> None:
        apply(name, Path())
        print(f"params.yaml is now {name}: dvc repro runs it")

    sys.exit(errors.run("preset", work))


def names(folder: Path) -> list[str]:
    """The presets of a project; `default` is one of them."""
    return sorted({"default", *(path.stem for path in (folder / "presets").glob("*.yaml"))})


def apply(name: str, folder: Path) -> None:
    """Write params.yaml of the project in `folder`, whole or not at all.

    Edits that were made while another preset was in force would be lost: they are kept in params.yaml.bak.

    Raises `UserError` for an unknown preset, or one that sets what the defaults lack.
    """
    if name not in names(folder):
        raise UserError(f"unknown preset {name!r}: there are {', '.join(names(folder))}")
    target, defaults = folder / "params.yaml", folder / "presets" / "default.yaml"
    if defaults.exists() and target.read_text() not in _written(folder, defaults.read_text()):
        shutil.copy(target, folder / "params.yaml.bak")
        message = "params.yaml was edited while a preset was in force: the edits are kept in params.yaml.bak"
        warnings.warn(message, DataWarning, stacklevel=2)
    if name == "default":
        if defaults.exists():
            defaults.replace(target)
        return
    source = defaults if defaults.exists() else target
    text = overlaid(source.read_text(), (folder / "presets" / f"{name}.yaml").read_text(), f"presets/{name}.yaml")
    if source == target:
        with replacing(defaults) as temporary:
            shutil.copy(target, temporary)
    with replacing(target) as temporary:
        temporary.write_text(text)


def in_force(folder: Path) -> str | None:
    """The name of the preset that params.yaml of the project in `folder` holds unchanged, or `None`."""
    text, defaults = (folder / "params.yaml").read_text(), folder / "presets" / "default.yaml"
    if not defaults.exists():
        return None
    for path in sorted((folder / "presets").glob("*.yaml")):
        if path != defaults and overlaid(defaults.read_text(), path.read_text(), f"presets/{path.name}") == text:
            return path.stem
    return None


def _written(folder: Path, defaults: str) -> list[str]:
    """What params.yaml holds under each preset."""
    files = [path for path in sorted((folder / "presets").glob("*.yaml")) if path.stem != "default"]
    return [defaults, *(overlaid(defaults, path.read_text(), f"presets/{path.name}") for path in files)]


def overlaid(defaults: str, preset: str, where: str) -> str:
    """The text of the defaults with a preset laid over it. where: what an error calls the preset."""
    yaml = YAML()
    yaml.width = 120
    params = yaml.load(defaults)
    for section, over in yaml.load(preset).items():
        if section not in params:
            raise UserError(f"{where}: unknown section {section}")
        if section in REPLACED or not isinstance(over, MutableMapping):
            params[section] = over
        else:
            _merge(params[section], over, f"{where}: {section}")
    stream = io.StringIO()
    yaml.dump(params, stream)
    return stream.getvalue()


def _merge(settings: MutableMapping[str, Any], over: MutableMapping[str, Any], where: str) -> None:
    """Lay settings over a section, in place."""
    for key, value in over.items():
        if key not in settings:
            raise UserError(f"{where}.{key}: no such setting")
        settings[key] = value


if __name__ == "__main__":
    main()
