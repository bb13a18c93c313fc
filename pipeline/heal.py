"""Mend DVC's files after a kill or a full disk: `python -m pipeline.heal`.

`make run` and flows do this before each run. `dvc repro` by hand does not: it fails with `'./dvc.lock' validation
failed`, `Unable to read RWLock-file`, or `is busy` for a process that is no DVC command.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline import ROOT
from pipeline.flows import repository


def main() -> None:
    """Mend, and say what was mended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT, help="of the DVC repository (default: this project's)")
    parser.add_argument("--quiet", action="store_true", help="say nothing where there is nothing to mend")
    arguments = parser.parse_args()
    for line in repository.heal(arguments.folder) or ([] if arguments.quiet else ["nothing to mend"]):
        print(line)


if __name__ == "__main__":
    main()
