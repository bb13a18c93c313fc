"""Fingerprints of the code behind each stage, so that DVC re-runs a stage when its code changes, and only then."""

from __future__ import annotations

import argparse
import shutil

from pipeline.settings import params
from pipeline.tracking import fingerprints
from stages import command


def main(arguments: argparse.Namespace) -> None:
    """Write one file for each stage: a line with the fingerprint and the name of each module and file that it uses."""
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    for stage, manifest in fingerprints.manifests(params.read()).items():
        path = arguments.out / f"{stage}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(manifest)


if __name__ == "__main__":
    command.run(main, writes=("out",))
