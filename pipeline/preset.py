"""Put a preset into params.yaml: `python -m pipeline.preset tiny`.

A preset is a file of presets/ laid over presets/default.yaml: what it names in `cells`, `problems`, `regularizers` and
`network` replaces those of the default, other settings take the place of single ones. The default's comments stay.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from elder import io
from elder.errors import UserError
from pipeline import ROOT

REPLACED = ("cells", "problems", "regularizers", "network")


def main() -> None:
    """Write params.yaml of the folder that this is run in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", help=f"one of {', '.join(names())}")
    name = parser.parse_args().preset
    if name not in names():
        sys.exit(f"preset: unknown preset {name!r}: there are {', '.join(names())}")
    try:
        apply(name, Path("params.yaml"))
    except UserError as error:
        sys.exit(f"preset: {error}")
    print(f"params.yaml is now {name}: dvc repro runs it")


def names() -> list[str]:
    """The presets that there are."""
    return sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


def apply(name: str, target: Path) -> None:
    """Write the default with the preset laid over it. Raises `UserError` for a section that the default lacks."""
    yaml = YAML()
    yaml.width = 120
    params = yaml.load((ROOT / "presets" / "default.yaml").read_text())
    for section, over in yaml.load((ROOT / "presets" / f"{name}.yaml").read_text()).items():
        if section not in params:
            raise UserError(f"presets/{name}.yaml: unknown section {section}")
        if section in REPLACED:
            params[section] = over
        else:
            merge(params[section], over, f"presets/{name}.yaml: {section}")
    with io.replacing(target) as temporary, temporary.open("w") as file:
        yaml.dump(params, file)


def merge(settings: MutableMapping[str, Any], over: MutableMapping[str, Any], where: str) -> None:
    """Lay settings over a section, in place."""
    for key, value in over.items():
        if key not in settings:
            raise UserError(f"{where}.{key}: no such setting")
        settings[key] = value


if __name__ == "__main__":
    main()
