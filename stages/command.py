"""The command line of a stage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from elder import command
from pipeline.settings import params
from pipeline.tracking import fingerprints
from stages import together

# The paths that are data sets, by their names.
DATA = ("images", "measurements")


def run(
    main: Callable[[argparse.Namespace], None],
    *,
    reads: Sequence[str] = (),
    writes: Sequence[str] = (),
    unused: Callable[[argparse.Namespace], None] | None = None,
    shared: bool = False,
    **choices: str,
) -> None:
    """Run the stage with `--NAME VALUE` of the command line; end with one line and exit code 1 on an error.

    All of params.yaml is checked first, whatever the stage.

    Args:
        reads: the names of the paths that the stage reads. dvc.yaml lists the same as its dependencies. `main` finds
            each by its name, and all of them with the stage's code as `arguments.reads`.
        writes: the names of the paths that it writes to.
        unused: what runs in the place of `main` for a problem or a regularizer that no cell uses.
        shared: whether `compute.processes` processes run `main` together.
        choices: other arguments, each with its help.
    """
    stage = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(description=main.__doc__)
    for path in (*reads, *writes):
        parser.add_argument(f"--{path}", type=Path, required=True)
    if reads:
        parser.add_argument("--code", type=Path, help="the stage's file of reports/code; found out if not given")
    for name, text in choices.items():
        parser.add_argument(f"--{name}", required=True, help=text)
    arguments = parser.parse_args()

    def work() -> None:
        chosen = params.read()
        entry = next((getattr(arguments, name) for name in ("cell", "regularizer", "problem") if name in choices), "")
        if unused is not None and entry in chosen.unused(stage):
            print(f"{stage}: no cell uses {entry}; nothing is computed for it")
            unused(arguments)
            return
        if reads:
            paths = tuple(getattr(arguments, name) for name in reads)
            data = tuple(getattr(arguments, name) for name in reads if name in DATA)
            arguments.reads = fingerprints.Reads(fingerprints.named(stage, entry), paths, arguments.code, data)
        if shared and chosen.compute.processes > 1 and not together.is_member():
            together.run(stage, sys.argv[1:], chosen.compute.processes)
            return
        main(arguments)

    sys.exit(command.run(stage, work))
