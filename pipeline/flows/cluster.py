"""Where the cells of the matrix are trained: on this machine, or by the workers of Dask or Ray."""

import importlib
import importlib.util
import logging
import os
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import BaseModel, ConfigDict, Field

from pipeline.flows import repository
from pipeline.flows.copies import Sharing

Engine = Literal["local", "dask", "ray"]
# The package of each engine; the extra `cluster` has both.
PACKAGES = {"dask": "prefect_dask", "ray": "prefect_ray"}
EXTRA = "pip install -c constraints.txt -e '.[cluster]'"
# Seconds in which a scheduler must answer.
PATIENCE = 10.0
# What fixes the number of threads, in PyTorch and below it.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Cluster(BaseModel):
    """How cells run apart from the project; the defaults are right for one machine.

    Prefect shows these in its form. Annotations are no strings here, as in `flow`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str = Field(
        default="",
        description="Of a Dask scheduler, such as tcp://host:8786, or of a Ray head, such as host:6379. Empty: workers "
        "of this run alone, at_once of them, on this machine.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="Processor threads of a cell. Empty: OMP_NUM_THREADS, or without it the cores of this machine "
        "divided by at_once; of a cluster with an address, what the environment of its workers says.",
    )
    gpus: float = Field(
        default=0.0, ge=0, description="GPUs of a cell that Ray hands out; 0.5 lets two cells share one."
    )
    remote: str = Field(
        default="",
        description="The DVC remote that carries data and results, if workers do not see the project's DVC cache.",
    )
    copies: str = Field(
        default="",
        description="The folder of the working copies, on every worker. Empty: .dvc/tmp/copies in the project.",
    )


@dataclass(frozen=True)
class Site:
    """A runner that has been checked, and what the jobs on it have in common.

    make: a new task runner. options: what Ray reserves for each job. address: of a cluster that is there already.
    """

    make: Callable[[], TaskRunner]
    address: str
    copies: Path
    sharing: Sharing
    variables: dict[str, str]
    options: dict[str, Any]


def site(engine: Engine, at_once: int, cluster: Cluster, root: Path) -> Site | None:
    """The runner that a flow asks for; `None` if cells run one by one in the project itself.

    Raises `ValueError` in one line for what can't be right: a package, a remote or a scheduler that is not there, or a
    setting that the engine does not know.
    """
    if engine == "local":
        if cluster.address:
            raise ValueError("cluster.address: runner local has none; set runner to dask or ray")
        if at_once == 1:
            idle = [name for name, field in Cluster.model_fields.items() if getattr(cluster, name) != field.default]
            if idle:
                names = ", ".join(f"cluster.{name}" for name in idle)
                raise ValueError(f"{names}: cells one by one in the project take none; set runner, or at_once above 1")
            return None
    elif importlib.util.find_spec(PACKAGES[engine]) is None:
        raise ValueError(f"runner: {engine} needs the extra `cluster`, which is not installed here: {EXTRA}")
    if cluster.gpus and engine != "ray":
        raise ValueError(f"cluster.gpus: {engine} hands out none; start a worker for each GPU, or set runner to ray")
    if cluster.address and at_once != 1:
        raise ValueError("at_once: the cluster at cluster.address has workers of its own; leave it at 1")
    if cluster.address:
        reach(cluster.address)
    copies = Path(cluster.copies) if cluster.copies else root / repository.COPIES
    if not copies.is_absolute():
        raise ValueError(f"cluster.copies: {copies} must be an absolute path, which every worker has")
    threads = cluster.threads or (None if cluster.address else _threads(at_once))
    variables: dict[str, str] = {name: str(threads) for name in THREADS} if threads else {}
    options = {"num_cpus": threads or 1, "num_gpus": cluster.gpus} if engine == "ray" else {}
    make = _factory(engine, at_once, cluster, threads or 1)
    return Site(make, cluster.address, copies, sharing(root, cluster), variables, options)


def sharing(root: Path, cluster: Cluster) -> Sharing:
    """Through what the project shares data and results. Raises `ValueError` for a remote that DVC does not know."""
    from dvc.config import Config

    config = Config(str(root / ".dvc"))
    cache = str(config["cache"].get("dir") or root / ".dvc" / "cache")
    if not cluster.remote:
        return Sharing(cache)
    known = config["remote"]
    if cluster.remote not in known:
        names = ", ".join(sorted(known)) or "none"
        raise ValueError(f"cluster.remote: DVC knows no remote {cluster.remote}; it knows {names}")
    return Sharing(cache, cluster.remote, str(known[cluster.remote]["url"]))


def reach(address: str) -> None:
    """Raise `ValueError` in one line if nothing listens at the address of a scheduler."""
    parts = urllib.parse.urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise ValueError(
            f"cluster.address: {address} is no address; give tcp://host:8786, host:6379 or ray://host:10001"
        )
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except OSError as error:
        raise ValueError(f"cluster.address: nothing answers at {address} ({error}); start it, or correct it") from None


def await_workers(runner: TaskRunner, site: Site, seconds: float) -> None:
    """Wait until a cluster has what a job needs; call it after the first submission.

    Before that, a cluster that grows by need would have no reason to start a worker. Raises `ValueError` after
    `seconds`. Ray on this machine alone does not grow: it has what a job needs at once, or never.
    """
    if not site.address:
        if site.options and (missing := _missing(runner, site)):
            raise ValueError(f"cluster.gpus, cluster.threads: this machine has no {missing}; ask for less")
        return
    deadline = time.monotonic() + seconds
    while missing := _missing(runner, site):
        if time.monotonic() > deadline:
            raise ValueError(f"cluster.address: {site.address} has had no {missing} for {seconds:g} s; start workers")
        time.sleep(min(1.0, seconds))


def _missing(runner: Any, site: Site) -> str:
    """What a job waits for; empty if there is all of it."""
    if not site.options:
        return "" if runner.client.scheduler_info()["workers"] else "worker"
    nodes = [node["Resources"] for node in importlib.import_module("ray").nodes() if node["Alive"]]
    wanted = {"CPU": site.options["num_cpus"], "GPU": site.options["num_gpus"]}
    # A job runs on one node, so what several have together does not help.
    if any(all(node.get(key, 0) >= count for key, count in wanted.items()) for node in nodes):
        return ""
    gpus = f" and {wanted['GPU']:g} GPUs" if wanted["GPU"] else ""
    return f"node with {wanted['CPU']:g} processors{gpus}"


@contextmanager
def submitting(options: dict[str, Any]) -> Iterator[None]:
    """Around a submission: what Ray is to reserve for it."""
    if not options:
        yield
        return
    with importlib.import_module("prefect_ray.context").remote_options(**options):
        yield


def _threads(at_once: int) -> int:
    """The threads of each of several cells on this machine."""
    told = os.environ.get(THREADS[0], "")
    return int(told) if told.isdigit() and int(told) else max(1, (os.cpu_count() or 1) // at_once)


def _factory(engine: Engine, at_once: int, cluster: Cluster, threads: int) -> Callable[[], TaskRunner]:
    if engine == "local":
        return lambda: ThreadPoolTaskRunner(max_workers=at_once)
    if engine == "dask":
        dask = importlib.import_module("prefect_dask").DaskTaskRunner
        logging.getLogger("distributed").setLevel(logging.WARNING)  # else it tells of each connection
        if cluster.address:
            return lambda: dask(address=cluster.address)
        workers = {"n_workers": at_once, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
        return lambda: dask(cluster_kwargs=workers)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing reports home
    ray = importlib.import_module("prefect_ray").RayTaskRunner
    if cluster.address:
        return lambda: ray(address=cluster.address)
    # Without `local`, Ray would join the cluster that RAY_ADDRESS names, or one of this machine, which may be gone.
    own = {"address": "local", "num_cpus": at_once * threads, "include_dashboard": False}
    return lambda: ray(init_kwargs=own)
