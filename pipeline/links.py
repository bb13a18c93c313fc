"""Addresses of MLflow's pages that open in the browser of another machine, as one line of JSON.

  python -m pipeline.links "flow 01234567-89ab-cdef-0123-456789abcdef"

The repro of this name, or the latest one if none has it: the page of its run, and the report among its artifacts.
Prints {"run": ..., "report": ...}, or {"needs": ...} where no server shows the store. A repro that was ended early, or
that trained some cells only, has no report: then the latest report is named.

The pages are those of the server of MLFLOW_TRACKING_URI. ELDER_MLFLOW_URL takes its place where people reach it under
another address than programs do, or where a server shows a store that programs open as a file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from itertools import chain

from elder import command
from elder.errors import UserError
from elder.model import store

VARIABLE = "ELDER_MLFLOW_URL"
PAGE = "index.html"


def find(name: str) -> dict[str, str]:
    """The addresses for the repro of this name. Raises `UserError` without a store, or if it holds no repro."""
    base = os.environ.get(VARIABLE) or store.existing()
    if not base.startswith(("http://", "https://")):
        return {"needs": f"an MLflow server, in {store.VARIABLE} or {VARIABLE}"}
    # These take seconds to import.
    from pipeline.runs import every
    from pipeline.tracking import experiments

    client, experiment = experiments.open_existing()
    quoted = name.replace("'", "")  # which would end a string in MLflow's filters
    conditions = (f"tags.repro = '{quoted}'", "tags.repro != ''")
    ids = (run.info.run_id for condition in conditions for run in every(client, experiment, condition))
    first = next(ids, None)
    if first is None:
        raise UserError("no repro is in the store yet; run dvc repro")

    def page(run_id: str) -> str:
        return f"{base.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"

    reported = (run_id for run_id in chain([first], ids) if any(f.path == PAGE for f in client.list_artifacts(run_id)))
    report = next(reported, None)
    if report is None:
        return {"needs": "a repro that has written a report; there is none in the store yet"}
    return {"run": page(first), "report": f"{page(report)}/artifacts/{PAGE}"}


def main() -> None:
    """Print the addresses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repro", help="the name of the repro")
    arguments = parser.parse_args()
    sys.exit(command.run("links", lambda: print(json.dumps(find(arguments.repro)))))


if __name__ == "__main__":
    main()
