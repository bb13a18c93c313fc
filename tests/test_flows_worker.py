"""A site as it is left running: a server, MLflow, a worker, and schedules that fire by themselves. Slow."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Project, answers
from test_ends import processes_in, training
from test_flows import free_port, wait_until
from test_flows_deployments import deploy, make_pool

from pipeline.flows import process, source

pytestmark = pytest.mark.slow
SERVICES = yaml.safe_load((ROOT / "docs" / "examples" / "site" / "compose.yaml").read_text())["services"]


def soon() -> str:
    """The cron schedule of a minute that leaves time to deploy, once an hour."""
    return f"{(datetime.now() + timedelta(minutes=3)).minute} * * * *"  # in the machine's time zone, as deployed


def ask(url: str, body: dict | None = None):
    """What the API of a server answers. Prefect's answers 503 while its database is busy, and is then asked again."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310  loopback
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
        time.sleep(1)


class Site:
    """The services of compose.yaml, without containers, around a copy of the project."""

    def __init__(self, project: Project, folder: Path, stack: ExitStack) -> None:
        self.project, self.folder, self._stack = project, folder, stack
        self.prefect, self.mlflow = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        shutil.copy(ROOT / "prefect.yaml", project.folder)
        self._start("prefect", self.prefect, "/api/health", PREFECT_HOME=str(folder / "home"))
        store = f"sqlite:///{folder / 'mlflow.db'}"
        self._start("mlflow", self.mlflow, "/health", store=store, artifacts=str(folder / "artifacts"))
        make_pool(f"{self.prefect}/api")

    @property
    def variables(self) -> dict[str, str]:
        return {
            "PREFECT_API_URL": f"{self.prefect}/api",
            "PREFECT_HOME": str(self.folder / "worker"),
            "MLFLOW_TRACKING_URI": self.mlflow,
            "ELDER_NOTIFY": str(self.folder / "notices.jsonl"),
            "OMP_NUM_THREADS": "1",
        }

    def _start(self, name: str, url: str, health: str, store: str = "", artifacts: str = "", **variables: str) -> None:
        command = SERVICES[name]["command"].replace("0.0.0.0", "127.0.0.1").replace("/artifacts", artifacts)  # noqa: S104
        command = re.sub(r"postgresql://\S+", store, command)
        port = url.rpartition(":")[2]
        command = re.sub(r"--port \d+", f"--port {port}", command).replace(":5000", f":{port}")
        # What the file leaves to its reader is set below.
        fixed = {key: value for key, value in SERVICES[name]["environment"].items() if "${" not in value}
        self.start(name, command.split(), **fixed | self.variables | variables)
        assert wait_until(lambda: answers(url + health), 240), self.log(name)

    def start(self, name: str, command: list[str], **variables: str) -> subprocess.Popen[str]:
        with (self.folder / f"{name}.log").open("w") as log:
            environment = self.project.environment | variables
            child = process.start(
                command, cwd=self.project.folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._stack.callback(process.stop, child)
        return child

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-4000:]

    def schedule(self, name: str) -> None:
        """Deploy with a schedule in some minutes for the deployment of this name, and none for the others."""
        file = self.project.folder / "prefect.yaml"
        content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        for one in content["deployments"]:
            mine = {**one["schedules"][0], "cron": soon()} if one["name"] == name else None
            one["schedules"] = [mine] if mine else []
            if name == "hourly" and mine:
                one["parameters"] = {"quiet": 0}
        file.write_text(yaml.safe_dump(content))
        deploy(self.project.folder, f"{self.prefect}/api")

    def versions(self) -> list[str]:
        """The versions in the registry, asked as the MLflow server tells them."""
        api = f"{self.mlflow}/api/2.0/mlflow/model-versions/search"
        return [found["version"] for found in ask(api).get("model_versions", [])]

    def finished(self, flow: str) -> list[tuple[bool, str]]:
        """Whether the schedule made it, and the state, of every run of a flow."""
        found = ask(f"{self.prefect}/api/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})
        return [(run["auto_scheduled"], run["state"]["type"]) for run in found if run["state"]["type"] != "SCHEDULED"]


def test_schedules_fire_and_a_new_picture_becomes_a_new_candidate(project, photographs, tmp_path):
    project.only_least_squares()
    raw = project.folder / "data" / "raw"
    first, *others = sorted(photographs.iterdir())
    for path in others:
        shutil.copy(path, raw)
    project.change("prepare", source="folder", shorter_side=40, validation_share=0.2, test_share=0.2)
    with ExitStack() as stack:
        site = Site(project, tmp_path, stack)
        site.schedule("nightly")
        worker = SERVICES["worker"]["command"].split("exec ")[1].rstrip('"').split()
        site.start("worker", worker, **site.variables)

        assert wait_until(lambda: (True, "COMPLETED") in site.finished("train"), 1200), site.log("worker")
        assert site.versions() == ["1"]
        assert source.last(project.folder) is not None
        keys = {found["key"]: found for found in ask(f"{site.prefect}/api/artifacts/filter", {})}
        assert {"progress-pretrain-least-squares", "progress-finetune-csmri-least-squares"} <= keys.keys()
        page = re.search(
            rf"\(({site.mlflow}/#/experiments/(\d+)/runs/(\w+)/artifacts/index\.html)\)", keys["report"]["data"]
        )
        assert page
        shown = urllib.request.urlopen(  # noqa: S310  loopback
            f"{site.mlflow}/get-artifact?path=index.html&run_uuid={page[3]}", timeout=20
        )
        assert b"<html" in shown.read(2000).lower()

        shutil.copy(first, raw)
        site.schedule("hourly")
        assert wait_until(lambda: (True, "COMPLETED") in site.finished("watch"), 1200), site.log("worker")
        assert sorted(site.versions()) == ["1", "2"]
        events = [json.loads(line)["event"] for line in (tmp_path / "notices.jsonl").open()]
        assert "failure" not in events
        assert events.count("promotion") >= 1


def test_a_run_that_is_cancelled_ends_its_training_and_the_next_one_resumes(project, tmp_path):
    project.only_least_squares()
    project.change("pretrain", steps=15000)  # longer than a command of Prefect takes
    with ExitStack() as stack:
        site = Site(project, tmp_path, stack)
        site.schedule("by hand")
        worker = SERVICES["worker"]["command"].split("exec ")[1].rstrip('"').split()
        site.start("worker", worker, **site.variables)

        prefect(site, "deployment", "run", "train/nightly")
        assert wait_until(lambda: training(project.folder), 600), site.log("worker")
        shown: set[str] = set()  # by the artifact that Prefect's page draws as a bar, in percent
        assert wait_until(lambda: shown.update(progress(site)) or len(shown) > 2, 300), site.log("worker")
        (run,) = ask(f"{site.prefect}/api/flow_runs/filter", {"flows": {"name": {"any_": ["train"]}}})
        prefect(site, "flow-run", "cancel", run["id"])
        assert wait_until(lambda: site.finished("train") == [(False, "CANCELLED")], 120), site.log("worker")
        assert wait_until(lambda: not stages(project.folder), 20), site.log("worker")
        assert training(project.folder)

        prefect(site, "deployment", "run", "train/nightly")
        assert wait_until(lambda: (False, "COMPLETED") in site.finished("train"), 1200), site.log("worker")
        assert site.versions() == ["1"]


def progress(site: Site) -> set[str]:
    """What the artifact of the pre-training shows now; empty before there is one."""
    artifacts = ask(f"{site.prefect}/api/artifacts/latest/filter", {})
    return {found["data"] for found in artifacts if found["key"] == "progress-pretrain-least-squares"}


def prefect(site: Site, *arguments: str) -> None:
    """Prefect's command line, asked of the site's server."""
    environment = site.project.environment | site.variables
    command = [str(Path(sys.executable).with_name("prefect")), *arguments]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)


def stages(folder: Path) -> list[str]:
    """The commands of the stages that are at work in the folder."""
    lines = [" ".join(each.cmdline()) for each in processes_in(folder)]
    return [line for line in lines if " -m stages." in line]
