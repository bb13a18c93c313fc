"""Which MLflow store results are registered in: looked at by every `dvc repro`, so that a new store is filled again."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import yaml

from elder import command
from elder.model import store

# What DVC sets for the stages of an experiment.
IN_EXPERIMENT = "DVC_EXP_BASELINE_REV"


def main(out: Path) -> None:
    """Write what tells the store from every other one, so that `register` runs again for a new one.

    Within a DVC experiment nothing is registered, unless `register.experiments` is true: then there is no store.
    """
    chosen = (yaml.safe_load(Path("params.yaml").read_text()) or {}).get("register") or {}
    inside = IN_EXPERIMENT in os.environ and not chosen.get("experiments")
    # Nothing here imports PyTorch, which takes longer than all the rest.
    out.write_text("none: this is a DVC experiment\n" if inside else f"{identity()}\n")


def identity() -> str:
    """The moment at which our experiment was made in the store, and the address of a server; makes a store if need be.

    A copy of a project has the moment, and what was registered, of the original.
    """
    uri = store.address()
    file = None if uri is None else store.database(uri)
    if file is not None and file.exists() and (moment := store.made(file)) is not None:
        return f"sqlite {moment}"
    # MLflow takes seconds to import: only for a store that is new, or a server.
    import mlflow

    from pipeline.tracking import experiments

    experiments.connect()
    uri = mlflow.get_tracking_uri()
    moment = mlflow.set_experiment(store.EXPERIMENT).creation_time
    return f"{'sqlite' if store.database(uri) else uri} {moment}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sys.exit(command.run("store", lambda: main(arguments.out)))
