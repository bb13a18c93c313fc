"""Move the champion of a problem back to the version before, or to any version.

  python -m pipeline.rollback csmri            the champion before this one
  python -m pipeline.rollback csmri --to 3     version 3, whatever the gate said of it

The registry is the store of MLFLOW_TRACKING_URI, or that of the folder. `elder models` lists the versions. The next
registration is compared with the version that is champion then. The version that was rolled back does not become
champion again by itself: --to brings it back.
"""

from __future__ import annotations

import argparse
import sys

from elder import command


def main() -> None:
    """Move the alias, and say from where to where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", help="the name of the problem, such as csmri")
    parser.add_argument("--to", type=int, metavar="VERSION", help="the version that becomes champion")
    arguments = parser.parse_args()

    def work() -> None:
        from pipeline.registry import gate
        from pipeline.settings import params
        from pipeline.tracking import experiments

        client, _ = experiments.open_existing()
        name = f"elder-{arguments.problem}"
        own_code = params.own_class(arguments.problem)
        left, taken = gate.roll_back(client, name, arguments.to, own_code)
        print(f"{name}: version {taken} is champion, in place of version {left}")

    sys.exit(command.run("rollback", work))


if __name__ == "__main__":
    main()
