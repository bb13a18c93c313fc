"""Every benchmark in turn, each in a process of its own: `python -m benchmarks`, or `make bench`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from benchmarks.common import RESULTS

NAMES = ("gradient", "memory", "solvers", "adjoint", "training", "batch", "ridges", "ct", "data", "processes", "peer")


def main() -> None:
    """Run them, then print all rows as the Markdown table of benchmarks/README.md."""
    argparse.ArgumentParser(description=__doc__).parse_args()  # `--help` must not start an hour of work
    missed = 0
    for name in NAMES:
        print(f"\n{name}", flush=True)
        missed += subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode != 0
    found = json.loads(RESULTS.read_text())
    print(f"\n{found['machine']}\n\n| benchmark | case | figure | range | at most |\n|---|---|---|---|---|")
    for row in found["rows"]:
        spread = "" if row["low"] == row["high"] else f"{row['low']:.3g} to {row['high']:.3g}"
        aim = "" if row["target"] is None else f"{row['target']:.3g}"
        print(f"| {row['benchmark']} | {row['case']} | {row['figure']:.3g} {row['unit']} | {spread} | {aim} |")
    sys.exit(missed and f"{missed} of {len(NAMES)} benchmarks failed, or missed a target")


if __name__ == "__main__":
    main()
