"""How long `mlflow models serve` takes to start and to answer: `python -m benchmarks.serving MODEL`.

MODEL is what MLflow loads, models:/elder-csmri@champion by default. Clients send measurements of one photograph, each
as soon as its last one is answered. Run it where MLflow finds the model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

PHOTOGRAPH = ("camera.png",)


@contextmanager
def serving(
    uri: str, environment: Mapping[str, str], folder: Path, seconds: float = 120
) -> Iterator[tuple[str, float]]:
    """A server of the model on this machine: its address, and the seconds until it answered. SIGTERM ends it.

    folder: where it runs.

    Raises `RuntimeError` with what it printed if it ends before it answers, or does not answer within `seconds`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where MLflow looks for uvicorn
    program = shutil.which("mlflow", path=tools) or "mlflow"
    command = [program, "models", "serve", "-m", uri, "--env-manager", "local", "-p", str(port)]
    address, start = f"http://127.0.0.1:{port}", time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "PATH": tools},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while not _answers(address):
                if server.poll() is not None or time.monotonic() - start > seconds:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(command)}: no answer\n{log.read()}")
                time.sleep(0.1)
            yield address, time.monotonic() - start
        finally:
            server.terminate()
            server.wait(seconds)
            # MLflow's command ends at once; uvicorn, its child, when it has answered what it has begun.
            until = time.monotonic() + seconds
            while _answers(address):
                if time.monotonic() > until:
                    raise RuntimeError(f"{address} still answers after SIGTERM")
                time.sleep(0.1)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ping") as answer:  # noqa: S310  our own server
            return answer.status == 200
    except OSError:
        return False


def ask(address: str, inputs: Mapping[str, Any], params: Mapping[str, Any] | None = None) -> tuple[int, Any]:
    """The status of the answer to a request, and its predictions, or the text of an error."""
    arrays = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in inputs.items()}
    body = json.dumps({"inputs": arrays, "params": dict(params or {})}).encode()
    request = urllib.request.Request(  # noqa: S310  our own server
        f"{address}/invocations", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            return answer.status, json.load(answer)["predictions"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def main() -> None:
    """Print the start-up, and what requests take from one client and from several."""
    from mlflow import get_tracking_uri

    from benchmarks.common import pictures
    from elder.model.address import load
    from elder.problems.samples import measure
    from pipeline.registry import packaging
    from pipeline.tracking import experiments

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="models:/elder-csmri@champion", help="a URI of MLflow")
    parser.add_argument("--requests", type=int, default=200, help="to send (default: 200)")
    parser.add_argument("--clients", type=int, default=8, help="that send at the same time (default: 8)")
    parser.add_argument("--side", type=int, default=144, help="of the picture, in pixels (default: 144)")
    arguments = parser.parse_args()
    experiments.connect()
    model = load(arguments.model)
    samples = measure(model.problem, PHOTOGRAPH, pictures(PHOTOGRAPH, (arguments.side, arguments.side)))
    inputs = packaging.served_inputs(model.problem, samples[0])

    def timed(address: str) -> float:
        start = time.monotonic()
        status, answer = ask(address, inputs)
        if status != 200:
            raise RuntimeError(answer)
        return time.monotonic() - start

    store = {"MLFLOW_TRACKING_URI": get_tracking_uri()}
    with serving(arguments.model, {**os.environ, **store}, Path.cwd()) as (address, started):
        print(f"start-up: {started:.1f} s")
        for clients in (1, arguments.clients):
            begun = time.monotonic()
            with ThreadPoolExecutor(clients) as pool:
                seconds = list(pool.map(timed, [address] * arguments.requests))
            rate = arguments.requests / (time.monotonic() - begun)
            late = statistics.quantiles(seconds, n=20)[-1]
            print(
                f"{clients} client(s), {arguments.requests} requests: median {statistics.median(seconds):.3f} s, "
                f"95 % within {late:.3f} s, {rate:.1f} a second"
            )


if __name__ == "__main__":
    main()
