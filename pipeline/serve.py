"""A deployment that retrains on a schedule: `python -m pipeline.serve --cron "0 3 * * *"`.

Needs nothing but the installation: where PREFECT_API_URL is not set, a Prefect server on 127.0.0.1 is started beside it
and ends with it.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from pipeline import ROOT
from pipeline.flows import process


def main() -> None:
    """Serve the flow until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    when = parser.add_mutually_exclusive_group(required=True)
    when.add_argument("--cron", help='a cron schedule, such as "0 3 * * *": every night at three')
    when.add_argument("--every", type=float, metavar="SECONDS", help="an interval instead")
    parser.add_argument("--name", default="scheduled", help="of the deployment (default: scheduled)")
    parser.add_argument("--port", type=int, default=4200, help="of the server started here (default: 4200)")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = process.environment()["PYTHONPATH"]
    server = None
    try:
        if not os.environ.get("PREFECT_API_URL"):
            server = start_server(arguments.port)
        # Prefect reads its address when it is first imported.
        from pipeline.flows.flow import train

        schedule = {"cron": arguments.cron} if arguments.cron else {"interval": arguments.every}
        train.serve(name=arguments.name, limit=1, parameters={"folder": str(ROOT)}, **schedule)
    finally:
        if server is not None:
            process.stop(server)


def start_server(port: int, patience: float = 120) -> subprocess.Popen[str]:
    """A Prefect server on 127.0.0.1 that ends with this process; PREFECT_API_URL is set to it once it answers."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            sys.exit(
                f"serve: port {port} is taken; use it with PREFECT_API_URL=http://127.0.0.1:{port}/api, "
                "or choose another with --port"
            )
    address = f"http://127.0.0.1:{port}"
    log = ROOT / ".prefect" / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as file:
        server = process.start(command, stdout=file, stderr=subprocess.STDOUT, env=process.environment())
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/api/health", timeout=2):  # noqa: S310  an address of this machine
                os.environ["PREFECT_API_URL"] = f"{address}/api"
                print(f"Prefect server at {address}, its log in {log}", flush=True)
                return server
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    process.stop(server)
    sys.exit(f"serve: the Prefect server did not start within {patience:g} s; see {log}")


if __name__ == "__main__":
    main()
