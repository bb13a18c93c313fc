"""The champions of the registry, as one line of JSON: `python -m pipeline.champions [--problem NAME]...`.

Each has problem, model (its address, with the number of the version, so that a promotion in the meantime changes
nothing), version, psnr (in dB on validation, as it was registered; null if it is not known), and own_code (the class of
its problem in params.yaml if it is one of your own; else null).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from elder import command
from elder.errors import UserError
from elder.model import registry
from pipeline.settings import params


def find(problems: Sequence[str]) -> list[dict[str, Any]]:
    """The champions of these problems, or of all if none is named. Raises `UserError` for one without a champion."""
    found: dict[str, dict[str, Any]] = {}
    for row in registry.listing():
        problem = row["name"].removeprefix("elder-")
        if "champion" in row["alias"].split(", "):
            found[problem] = {
                "problem": problem,
                "model": f"models:/{row['name']}/{row['version']}",
                "version": row["version"],
                "psnr": row["psnr"] if math.isfinite(row["psnr"]) else None,
                "own_code": params.own_class(problem),
            }
    if missing := sorted(set(problems) - found.keys()):
        raise UserError(f"{', '.join(missing)}: no champion; there is one of {', '.join(sorted(found)) or 'nothing'}")
    if not found:
        again = "dvc repro --force --single-item register@CELL"
        raise UserError(f"the registry holds no champion yet; run dvc repro; if it was deleted, {again}")
    return [found[problem] for problem in sorted(found) if not problems or problem in problems]


def main() -> None:
    """Print the champions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", action="append", default=[], help="one problem only; may be repeated")
    arguments = parser.parse_args()
    sys.exit(command.run("champions", lambda: print(json.dumps(find(arguments.problem)))))


if __name__ == "__main__":
    main()
