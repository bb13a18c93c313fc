"""What `make run` made, as a table, and what to try next."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from elder import UserError, command, io, problems
from pipeline.report.tables import Method, by_problem, methods
from pipeline.settings import params


def table(methods: list[Method]) -> list[str]:
    """The rows of one problem's table."""
    lines = [f"  {'':<36}{'PSNR':>9}{'SSIM':>9}{'steps':>8}{'converged':>11}  gain by DEQ training"]
    for m in methods:
        row = m.metrics
        text = f"  {m.label:<36}{row['psnr']:>6.2f} dB{row['ssim']:>9.4f}{row['steps']:>8.1f}{m.count:>11}  {m.gain}"
        lines.append(text.rstrip())
    if any(m.stopped_early for m in methods):
        lines.append("  * solves were stopped before they converged: the row depends on where they were cut off")
    return lines


def main() -> None:
    """Print the table of every problem."""
    reports = Path("reports")
    if not (reports / "index.html").exists():
        raise UserError("reports: no result yet; run dvc repro")
    cells = params.read().cells
    for problem, mine in by_problem(cells).items():
        initial = problems.make(problem, params.read().problem(problem)).initial_name
        print(f"\n{problem}, means over the test images; λ of total variation, λ and σ before DEQ tuned on validation")
        print("\n".join(table(methods(problem, initial, mine, reports / "cells", reports / "baselines"))))
    found = [reports / "cells" / name / "registered.json" for name in cells]
    print("\nThe report, with pictures and curves: reports/index.html; the models: models/CELL")
    name = io.read_json(found[0])["name"]
    print(
        f"""
Next:
  source .venv/bin/activate
  elder evaluate models:/{name}@champion --images YOUR_PICTURES --out report    on pictures of yours
  dvc repro, after a change in params.yaml                            runs only what the change affects
  mlflow ui --backend-store-uri sqlite:///mlflow.db                  curves, runs and the registry in a browser
  python -m pipeline.serve --cron "0 3 * * *"                        retrain every night"""
    )


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m pipeline.report.summary", description=__doc__).parse_args()
    sys.exit(command.run("summary", main))
