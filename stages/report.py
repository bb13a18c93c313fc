"""All results on one page."""

from __future__ import annotations

import argparse

from pipeline.report import page
from stages import command


def main(arguments: argparse.Namespace) -> None:
    """Write the page with its tables, and the figures in it also as files."""
    sources = page.Sources(arguments.images, arguments.cells, arguments.baselines)
    page.write(sources, arguments.out, arguments.figures)
    print(f"the report: {arguments.out}")


if __name__ == "__main__":
    command.run(main, reads=("images", "cells", "baselines"), writes=("out", "figures"))
