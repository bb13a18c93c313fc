"""Print the command lines of stages, for a machine that has no DVC: docs/experiments.md says how to train there.

  python -m pipeline.commands pretrain@least_squares tune@csmri-least_squares finetune@csmri-least_squares

A line a command, in the order given. `dvc repro --dry` prints the first one only, where the next needs its result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator

from elder import command
from elder.errors import UserError


def of_stages(names: Iterable[str]) -> Iterator[str]:
    """The command lines of stages of dvc.yaml, in this order. Raises `UserError` for a name that it does not have."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo() as repo:
        for name in names:
            try:
                (stage,) = repo.stage.collect(name)
            except (DvcException, ValueError) as error:
                raise UserError(f"{name}: no stage of dvc.yaml ({error})") from None
            yield from [stage.cmd] if isinstance(stage.cmd, str) else stage.cmd or []


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", metavar="STAGE", help="a stage of dvc.yaml, finetune@CELL for example")
    arguments = parser.parse_args()
    sys.exit(command.run("commands", lambda: print("\n".join(list(of_stages(arguments.stages))))))


if __name__ == "__main__":
    main()
