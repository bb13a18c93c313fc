"""Compare the cells of the last repros: PSNR before and after DEQ training, against the repro before.

  python -m pipeline.runs                              the last 5 repros
  python -m pipeline.runs --last 20 --cell csmri-least_squares

A repro is one `dvc repro`, one `dvc exp run`, or one flow. "before" is the tuned regularizer and "after" the one after
DEQ training, as mean PSNR in dB on the test images. "change" compares "after" with the last repro that knew the cell.
DVC skips a cell whose data, settings and code have not changed, or restores its result from its cache. Then the line
says "no new run", and shows the result that is there. A commit with a * had changed files. Stages that were started by
hand belong to no repro.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from elder import command
from elder.errors import UserError
from pipeline.tracking import experiments, repros

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BEFORE, AFTER = "pretrained.psnr", "finetuned.psnr"


@dataclass(frozen=True)
class Outcome:
    """One cell in one repro."""

    cell: str
    before: float  # mean PSNR in dB of the tuned regularizer on the test images
    after: float  # of the DEQ-trained one
    evaluated: bool  # whether this repro evaluated the cell; else DVC skipped or restored it


@dataclass(frozen=True)
class Repro:
    """One repro, with what it says of its cells, by their names."""

    run: Run
    outcomes: dict[str, Outcome]


def repros_of(client: MlflowClient, experiment: str) -> list[Repro]:
    """Every repro of the store, the latest first."""
    groups: dict[str, list[Run]] = {}
    for run in every(client, experiment, "tags.stage = 'evaluate'"):
        groups.setdefault(run.data.tags.get(repros.PARENT, ""), []).append(run)
    made = every(client, experiment, "tags.repro != ''")
    return [Repro(run, _outcomes(run, groups.get(run.info.run_id, []))) for run in made]


def every(client: MlflowClient, experiment: str, condition: str = "") -> Iterator[Run]:
    """The runs that meet a condition, the latest first, page by page."""
    token = None
    while True:
        page = client.search_runs([experiment], condition, order_by=["attributes.start_time DESC"], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _outcomes(run: Run, evaluations: Sequence[Run]) -> dict[str, Outcome]:
    """The cells of the report of this repro, and those that it evaluated before it was ended."""
    found = {}
    for name, after in run.data.metrics.items():
        cell = name.removesuffix(f".{AFTER}")
        before = run.data.metrics.get(f"{cell}.{BEFORE}")
        if cell != name and before is not None:
            found[cell] = Outcome(cell, before, after, evaluated=False)
    for evaluation in evaluations:
        cell, metrics = evaluation.data.tags["cell"].removeprefix("evaluate "), evaluation.data.metrics
        if {BEFORE, AFTER} <= metrics.keys():
            found[cell] = Outcome(cell, metrics[BEFORE], metrics[AFTER], evaluated=True)
    return found


def table(found: Sequence[Repro], last: int, cell: str = "") -> list[str]:
    """The lines for the `last` repros of those found, the latest first; of one cell, if it is named."""
    width = max([len(name) for repro in found for name in repro.outcomes] + [4])
    lines = [f"{'repro (UTC)':<17}{'commit':<10}{'cell':<{width}}{'before':>8}{'after':>8}{'change':>8}"]
    for index, repro in enumerate(found[:last]):
        tags = repro.run.data.tags
        when = f"{datetime.fromtimestamp(repro.run.info.start_time / 1000, UTC):%Y-%m-%d %H:%M}"
        commit = tags.get("commit", "")[:7] + ("*" if tags.get("dirty") == "true" else "")
        label = f"{when:<17}{commit:<10}"
        chosen = [outcome for name, outcome in sorted(repro.outcomes.items()) if cell in ("", name)]
        if not chosen:
            lines.append(f"{label}no result of a cell; {repro.run.info.status.lower()}")
        for outcome in chosen:
            earlier = [r.outcomes[outcome.cell] for r in found[index + 1 :] if outcome.cell in r.outcomes]
            change = f"{outcome.after - earlier[0].after:+.2f}" if earlier else ""
            note = "" if outcome.evaluated else "  no new run"
            lines.append(
                f"{label}{outcome.cell:<{width}}{outcome.before:>8.2f}{outcome.after:>8.2f}{change:>8}{note}".rstrip()
            )
            label = " " * len(label)
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--last", type=int, default=5, metavar="N", help="how many repros, 5 by default")
    parser.add_argument("--cell", default="", help="one cell only")
    arguments = parser.parse_args()

    def work() -> None:
        if arguments.last < 1:
            raise UserError(f"--last {arguments.last}: must be at least 1")
        found = repros_of(*experiments.open_existing())
        if not found:
            raise UserError("no repro is in the store yet; run dvc repro")
        known = sorted({name for repro in found for name in repro.outcomes})
        if arguments.cell and arguments.cell not in known:
            raise UserError(f"--cell {arguments.cell}: no repro knows it; known are {', '.join(known) or 'none'}")
        print("\n".join(table(found, arguments.last, arguments.cell)))

    sys.exit(command.run("runs", work))


if __name__ == "__main__":
    main()
