"""The command line of a stage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from elder import errors
from pipeline import params


def run(main: Callable[[argparse.Namespace], None], *paths: str, **choices: str) -> None:
    """Parse `--PATH VALUE` for each of `paths`, run the stage, and end with one line and exit code 1 on an error.

    All of params.yaml is checked first, whatever the stage.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    for path in paths:
        parser.add_argument(f"--{path}", type=Path, required=True)
    for name, text in choices.items():
        parser.add_argument(f"--{name}", required=True, help=text)
    arguments = parser.parse_args()

    def work() -> None:
        params.check()
        main(arguments)

    sys.exit(errors.run(Path(sys.argv[0]).stem, work))
