"""Run the pipeline as a Prefect flow, in this process: `python -m pipeline.flows` starts it under a supervisor.

python -m pipeline.flows --at-once 4                                   four cells at a time on this machine
python -m pipeline.flows --runner dask --address tcp://host:8786       on a Dask cluster that runs already
python -m pipeline.flows --runner ray --at-once 4 --gpus 1             by Ray, each cell on a GPU of its own
"""

import argparse
import sys
from typing import Any

from prefect.exceptions import ParameterTypeError
from prefect.settings import get_current_settings

from pipeline import ROOT
from pipeline.flows import health
from pipeline.flows.cluster import Cluster
from pipeline.flows.flow import plan, train


def main() -> None:
    """Run it with the parameters of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.flows", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cell", action="append", default=[], dest="cells", help="one cell only; may be repeated")
    parser.add_argument("--runner", default="local", metavar="local|dask|ray", help="who trains the cells")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="cells at the same time, on this machine")
    for name, field in Cluster.model_fields.items():
        parser.add_argument(f"--{name}", help=field.description)
    arguments = parser.parse_args()
    given = {name: value for name in Cluster.model_fields if (value := getattr(arguments, name)) is not None}
    parameters: dict[str, Any] = {
        "cells": arguments.cells,
        "runner": arguments.runner,
        "at_once": arguments.at_once,
        "cluster": given,
    }
    if url := get_current_settings().api.url:
        health.check(url, "flows")
    try:
        checked = train.validate_parameters(parameters)
        plan(ROOT, **{name: checked[name] for name in parameters})  # before a server is started
    except (ParameterTypeError, ValueError) as error:
        sys.exit(f"flows: {' '.join(str(error).split())}")
    try:
        train(**parameters)
    except Exception as error:  # Prefect has logged it with its traceback
        sys.exit(f"flows: {error}")


if __name__ == "__main__":
    main()
