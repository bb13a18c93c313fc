"""All results on one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from elder import io
from pipeline.report import page
from pipeline.settings import params
from pipeline.tracking import experiments
from stages import command


def main(arguments: argparse.Namespace) -> None:
    """Write the page with its tables, and the figures in it also as files; log them to the run of the `dvc repro`."""
    sources = page.Sources(arguments.images, arguments.cells, arguments.baselines, arguments.pretrained)
    page.write(sources, arguments.out, arguments.figures)
    print(f"the report: {arguments.out}")
    experiments.log_repro(psnr(arguments.cells), arguments.out, arguments.figures)


def psnr(cells: Path) -> dict[str, float]:
    """The mean PSNR in dB of every cell before and after DEQ training, also of those that DVC skipped."""
    tables = {cell: io.read_json(cells / cell / "metrics.json") for cell in params.read().cells}
    return {f"{cell}.{method}.psnr": row["psnr"] for cell, methods in tables.items() for method, row in methods.items()}


if __name__ == "__main__":
    command.run(main, reads=("images", "cells", "baselines", "pretrained"), writes=("out", "figures"))
