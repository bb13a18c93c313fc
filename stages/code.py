"""Fingerprints of the code behind each stage, so that DVC re-runs a stage when its code changes, and only then."""

from __future__ import annotations

import argparse
import shutil

from pipeline import fingerprints, params
from stages import command

# The stages that run once for each problem, or for each regularizer.
OF_EACH = {"simulate": "problem", "baseline": "problem", "pretrain": "regularizer"}


def main(arguments: argparse.Namespace) -> None:
    """Write one file for each stage: a line with the fingerprint and the name of each module that it uses.

    A stage of each problem or regularizer has a file for each. That of one that no cell uses is empty: what it writes
    depends on no code, and changes when a cell uses it.
    """
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    chosen = params.read()
    for stage, manifest in fingerprints.manifests(chosen).items():
        kind = OF_EACH.get(stage)
        if kind is None:
            (arguments.out / f"{stage}.txt").write_text(manifest)
            continue
        (arguments.out / stage).mkdir()
        unused = chosen.unused(kind)
        for name in chosen.problems if kind == "problem" else chosen.regularizers:
            (arguments.out / stage / f"{name}.txt").write_text("" if name in unused else manifest)


if __name__ == "__main__":
    command.run(main, writes=("out",))
