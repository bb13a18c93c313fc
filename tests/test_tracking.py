"""Runs of results below runs of repros, what they keep, and what compares and prunes them; on a real SQLite store."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
import pytest
import yaml
from conftest import ROOT, forget_store
from mlflow import MlflowClient
from mlflow.entities import Run

from elder import UserError
from elder.model.store import EXPERIMENT
from elder.training.checkpoint import Checkpoint
from pipeline import REPRO, links, prune, rollback, runs
from pipeline.flows import repository
from pipeline.registry import gate
from pipeline.tracking import experiments, fingerprints, logs, repros

CELL = "csmri-least_squares"


@pytest.fixture
def store(empty_store, tmp_path, monkeypatch):
    """A project's folder with an empty store, outside of DVC; gives what shows every run that is there."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in (REPRO, repros.DVC_STAGE):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(empty_store, folder)
    # MLflow keeps connections by their address: each test needs its own.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    forget_store()
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(b"a picture")
    (folder / "code.txt").write_text("0123  elder\n")
    yield folder
    forget_store()


def all_runs(folder: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return list(client.search_runs([experiment.experiment_id]))


def named(folder: Path) -> dict[str | None, Run]:
    """Every run by its name; none twice."""
    found = all_runs(folder)
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def reads(stage: str = "evaluate") -> fingerprints.Reads:
    images = Path("images")
    return fingerprints.Reads(stage, (images,), Path("code.txt"), (images,))


def result(title: str = f"evaluate {CELL}", seed: int = 0, **metrics: float) -> str:
    """Log a result as a stage does. Returns the id of its run."""
    with logs.run(title, {"seed": seed}, reads()) as log:
        log.metrics(metrics)
        return open_run()


def open_run() -> str:
    """The id of the run that this process logs to."""
    run = mlflow.active_run()
    assert run is not None
    return str(run.info.run_id)


def evaluated(before: float, after: float, cell: str = CELL, seed: int = 0) -> None:
    result(f"evaluate {cell}", seed, **{"pretrained.psnr": before, "finetuned.psnr": after})


def test_results_of_one_repro_are_nested_under_one_run(store, monkeypatch):
    for command in (["init", "-q"], ["config", "user.name", "a"], ["config", "user.email", "a@example.org"]):
        subprocess.run(["git", *command], check=True)
    (store / ".gitignore").write_text("mlflow.db*\nmlruns\n")
    (store / "dvc.lock").write_text("stages: {}\n")
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", "commit", "-qm", "start"], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv(REPRO, "flow one")
    result("tune a")
    (store / "code.txt").write_text("4567  elder\n")  # a changed file
    result("finetune a")
    monkeypatch.setenv(REPRO, "flow two")
    result("finetune b")
    found = all_runs(store)
    one, two = (next(run for run in found if run.data.tags.get("repro") == f"flow {name}") for name in ("one", "two"))
    nested = {run.info.run_name: run.data.tags["mlflow.parentRunId"] for run in found if "cell" in run.data.tags}
    assert nested == {"tune a": one.info.run_id, "finetune a": one.info.run_id, "finetune b": two.info.run_id}
    assert {run.info.status for run in found} == {"FINISHED"}
    assert one.data.tags["commit"] == two.data.tags["commit"] == commit
    assert (one.data.tags["dirty"], two.data.tags["dirty"]) == ("false", "true")
    assert one.data.tags["dvc.lock"] == hashlib.sha256(b"stages: {}\n").hexdigest()[:16]
    assert one.data.tags["host"] == platform.node()
    assert one.data.tags["version.python"] == platform.python_version()
    assert one.data.tags["version.mlflow"] == mlflow.__version__
    assert {"version.torch", "version.dvc"} <= one.data.tags.keys()


def test_a_stage_by_hand_belongs_to_no_repro(store):
    result()
    experiments.log_repro({"psnr": 1.0})
    (run,) = all_runs(store)
    assert "mlflow.parentRunId" not in run.data.tags


def test_the_stages_of_one_dvc_repro_know_that_they_are(tmp_path, monkeypatch):
    """By DVC itself, with shells between, and without the variable that a flow sets."""
    show = f"{sys.executable} -c 'from pipeline.tracking import repros; print(repros.current())'"
    stages = {name: {"cmd": f"{show} >> {name}.txt"} for name in ("one", "two")}
    stages["deep"] = {"cmd": f'sh -c "true; {show} >> deep.txt"'}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
    clean = {k: v for k, v in os.environ.items() if k not in (REPRO, "DVC_STAGE", "DVC_ROOT")}
    tool, environment = str(Path(sys.executable).with_name("dvc")), clean | {"PYTHONPATH": str(ROOT)}
    for _ in range(2):
        subprocess.run([tool, "repro", "-f"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    first, second = zip(*((tmp_path / f"{name}.txt").read_text().splitlines() for name in stages), strict=True)
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] != second[0]
    assert first[0].startswith(f"{platform.node()} ")


def test_the_data_set_is_an_input_by_its_hash(store):
    result()
    result()  # again: the same run, with the same input
    (run,) = all_runs(store)
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "images"
    assert data.dataset.digest == fingerprints.content_hash(Path("images"))[:32]
    (store / "images" / "a.png").write_bytes(b"another picture")
    result()
    digests = {run.inputs.dataset_inputs[0].dataset.digest for run in all_runs(store)}
    assert digests == {data.dataset.digest, fingerprints.content_hash(Path("images"))[:32]}
    assert len(digests) == 2


def test_a_run_keeps_tables_and_figures_and_not_what_is_large(store, monkeypatch):
    monkeypatch.setattr(experiments, "LARGEST", 10)
    (store / "table.csv").write_text("psnr\n31.5\n")
    (store / "large.csv").write_text("psnr\n31.50\n")
    (store / "figures").mkdir()
    (store / "figures" / "panel.png").write_bytes(b"figure")
    with logs.run("evaluate a", {}, reads()) as log:
        log.artifacts(Path("table.csv"), Path("large.csv"), Path("figures"))
        run_id = open_run()
    artifacts = Path(MlflowClient().get_run(run_id).info.artifact_uri.removeprefix("file://"))
    kept = {str(path.relative_to(artifacts)): path.read_text() for path in artifacts.rglob("*") if path.is_file()}
    assert kept == {"table.csv": "psnr\n31.5\n", "figures/panel.png": "figure"}


def test_links_lead_to_a_report_that_is_there(store, monkeypatch):
    """A repro of some cells, or one that ended early, has none: the latest report is named then."""
    monkeypatch.setenv(links.VARIABLE, "http://localhost:5000/")
    for name in ("whole", "partly"):
        monkeypatch.setenv(REPRO, f"flow {name}")
        result(f"tune {name}")
    assert "a repro that has written a report" in links.find("flow partly")["needs"]
    (store / "index.html").write_text("the report")
    monkeypatch.setenv(REPRO, "flow whole")
    monkeypatch.setattr(experiments, "LARGEST", 2)  # a report is kept whatever its size
    experiments.log_repro({}, store / "index.html")
    whole, partly = (
        next(run.info.run_id for run in all_runs(store) if run.data.tags.get("repro") == f"flow {name}")
        for name in ("whole", "partly")
    )
    found = links.find("flow partly")
    assert found["run"].endswith(f"/runs/{partly}")
    assert found["report"].endswith(f"/runs/{whole}/artifacts/index.html")
    assert found["run"].startswith("http://localhost:5000/#/experiments/")


def test_what_a_repro_made_is_logged_to_its_run(store, monkeypatch):
    monkeypatch.setenv(REPRO, "flow one")
    result()
    (store / "index.html").write_text("the report")
    experiments.log_repro({f"{CELL}.finetuned.psnr": 31.5}, Path("index.html"))
    run = named(store)["repro"]
    assert run.data.metrics == {f"{CELL}.finetuned.psnr": 31.5}
    assert [file.path for file in MlflowClient().list_artifacts(run.info.run_id)] == ["index.html"]


def test_a_stage_that_fails_fails_its_run_and_its_repro(store, monkeypatch):
    monkeypatch.setenv(REPRO, "flow one")
    result("tune a")
    with pytest.raises(ArithmeticError), logs.run("finetune a", {}, reads()):
        raise ArithmeticError("diverged")
    statuses = {name: run.info.status for name, run in named(store).items()}
    assert statuses == {"repro": "FAILED", "tune a": "FINISHED", "finetune a": "FAILED"}
    monkeypatch.setenv(REPRO, "flow two")  # the next one resumes it
    with logs.run("finetune a", {}, reads()):
        pass
    found = all_runs(store)
    again, parent = (
        next(r for r in found if r.data.tags.get(k) == v) for k, v in (("cell", "finetune a"), ("repro", "flow two"))
    )
    assert len(found) == 4
    assert again.info.status == parent.info.status == "FINISHED"
    assert again.data.tags["mlflow.parentRunId"] == parent.info.run_id


# A stage that logs a value, and works on.
WORKING = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from pipeline.tracking import fingerprints, logs
images = Path("images")
reads = fingerprints.Reads("tune", (images,), Path("code.txt"), (images,))
with logs.run("tune a", {{"seed": 0}}, reads) as log:
    log.metrics({{"psnr": 30.0}})
    time.sleep(300)
"""


def started(store: Path) -> bool:
    """Whether that value has arrived."""
    if not (store / "mlflow.db").exists():
        return False
    found = MlflowClient().search_runs(["0", "1"], "tags.cell = 'tune a'")
    return bool(found) and "psnr" in found[0].data.metrics


def test_runs_of_killed_stages_are_killed_at_the_next_one(store, monkeypatch):
    environment = {**os.environ, REPRO: "flow one", "PYTHONPATH": str(ROOT)}
    code = WORKING.format(tests=str(ROOT / "tests"))
    stage = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        deadline = time.monotonic() + 120
        while not started(store) and time.monotonic() < deadline and stage.poll() is None:
            time.sleep(0.1)
        monkeypatch.setenv(REPRO, "flow two")
        result("tune b")
        before = {run.data.tags.get("cell", run.data.tags.get("repro")): run.info.status for run in all_runs(store)}
    finally:
        stage.send_signal(signal.SIGKILL)
        # It is a zombie until it is waited for.
        zombie = time.monotonic() + 20
        while psutil.Process(stage.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < zombie:
            time.sleep(0.01)
    assert before == {"tune a": "RUNNING", "flow one": "RUNNING", "tune b": "FINISHED", "flow two": "FINISHED"}
    result("tune c")
    stage.wait()
    after = {run.data.tags.get("cell", run.data.tags.get("repro")): run.info.status for run in all_runs(store)}
    assert after == before | {"tune a": "KILLED", "flow one": "KILLED", "tune c": "FINISHED"}


def stage(work: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a stage that starts without MLflow, with `work` in the block of its log."""
    code = f"""
import os, signal, sys
from pathlib import Path
from elder import command
from pipeline.tracking import fingerprints, logs

def work():
    assert "mlflow" not in sys.modules
    images = Path("images")
    reads = fingerprints.Reads("tune", (images,), Path("code.txt"), (images,))
    with logs.run("tune a", {{"seed": 0, "factors": (2.0, 1.4)}}, reads) as log:
        {work}
    assert "mlflow" not in sys.modules

sys.exit(command.run("tune", work))
"""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=variables, timeout=120
    )


def test_another_process_logs_what_a_stage_does(store):
    """The run is the one that this process would have logged: the same tags, params, inputs, metrics and files."""
    work = "log.metrics({'loss': 1.0}, 1); log.metrics({'loss': 0.5}, 2); log.artifacts(Path('table.csv'))"
    (store / "table.csv").write_text("psnr\n31.5\n")
    done = stage(work)
    assert done.returncode == 0, done.stderr
    (theirs,) = all_runs(store)
    with logs.run("tune a", {"seed": 0, "factors": (2.0, 1.4)}, reads("tune")) as log:
        assert open_run() == theirs.info.run_id
        log.metrics({"loss": 0.5}, 2)
    assert theirs.info.status == "FINISHED"
    assert theirs.data.params == {"seed": "0", "factors": "(2.0, 1.4)"}
    assert [point.value for point in MlflowClient().get_metric_history(theirs.info.run_id, "loss")][:2] == [1.0, 0.5]
    assert [file.path for file in MlflowClient().list_artifacts(theirs.info.run_id)] == ["table.csv"]
    assert [entry.dataset.name for entry in theirs.inputs.dataset_inputs] == ["images"]


def test_a_stage_that_fails_says_so_to_the_process_that_logs(store):
    done = stage("raise ArithmeticError('not finite')")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "tune: not finite"
    (run,) = all_runs(store)
    assert run.info.status == "FAILED"


@pytest.mark.parametrize("work", ["pass", "log._run._process.wait(); log.metrics({'psnr': 1.0}); raise AssertionError"])
def test_a_stage_whose_log_fails_fails_in_one_line(work, store):
    """At the end of the block, or when it logs after the failure."""
    done = stage(work, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("tune: http://127.0.0.1:9: the MLflow server does not answer")


def test_a_stage_whose_logging_process_is_killed_fails(store):
    done = stage("log._run._process.kill(); log._run._process.wait(); log.metrics({'psnr': 1.0})")
    assert done.returncode == 1
    assert done.stderr == "tune: tune a: the process that logs to MLflow ended with exit code -9\n"


def test_a_killed_stage_leaves_no_process(store):
    """Its run is set to KILLED by the next stage."""
    done = stage("Path('pid').write_text(str(log._run._process.pid)); os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    pid = int((store / "pid").read_text())
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)


def test_only_the_dead_of_this_host_are_killed(store):
    result()
    client, owner = MlflowClient(), repros.owner()
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    ended = subprocess.Popen(["true"])
    ended.wait()
    cases = {
        "alive": owner,
        "a process that ended": owner | {"pid": str(ended.pid)},
        "a number used again": owner | {"started": f"{float(owner['started']) - 60:.2f}"},
        "elsewhere": owner | {"pid": str(ended.pid), "host": "another"},
        "no process noted": {"host": owner["host"]},
    }
    for name, tags in cases.items():
        client.create_run(experiment, run_name=name, tags=tags)
    repros.end_dead_runs(client, experiment)
    statuses = {name: run.info.status for name, run in named(store).items() if name in cases}
    dead = ("a process that ended", "a number used again")
    assert statuses == {name: "KILLED" if name in dead else "RUNNING" for name in cases}


def test_system_metrics_are_there_when_asked_for(store, monkeypatch):
    result("tune a")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with logs.run("tune b", {}, reads()):
        deadline = time.monotonic() + 20
        while not MlflowClient().get_run(open_run()).data.metrics and time.monotonic() < deadline:
            time.sleep(0.05)
    found = named(store)
    assert not found["tune a"].data.metrics
    assert "system/cpu_utilization_percentage" in found["tune b"].data.metrics


@pytest.fixture
def three(store, monkeypatch):
    """Three repros: two cells; one of them again; and one that was ended before its report."""
    for number in range(3):
        monkeypatch.setenv(REPRO, f"flow {number}")
        if number == 0:
            evaluated(28.0, 29.0, "b")
        evaluated(27.0 + number, 30.0 + number / 4, "a", seed=number)
        if number < 2:
            experiments.log_repro(
                {"a.pretrained.psnr": 27.0 + number, "a.finetuned.psnr": 30.0 + number / 4}
                | {"b.pretrained.psnr": 28.0, "b.finetuned.psnr": 29.0}
            )
        time.sleep(0.01)  # runs are sorted by their start, in milliseconds
    monkeypatch.delenv(REPRO)
    return store


def command(module, monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    with pytest.raises(SystemExit) as ended:
        module.main()
    return int(ended.value.code or 0)


def test_the_cells_of_the_last_repros_are_compared(three, monkeypatch, capsys):
    assert command(runs, monkeypatch) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["repro", "(UTC)", "commit", "cell", "before", "after", "change"]
    shown = [line[27:].split() for line in lines]
    assert shown == [
        ["a", "29.00", "30.50", "+0.25"],
        ["a", "28.00", "30.25", "+0.25"],
        ["b", "28.00", "29.00", "+0.00", "no", "new", "run"],
        ["a", "27.00", "30.00"],
        ["b", "28.00", "29.00"],
    ]
    assert command(runs, monkeypatch, "--last", "1", "--cell", "a") == 0
    assert [line[27:].split() for line in capsys.readouterr().out.splitlines()[1:]] == shown[:1]
    assert command(runs, monkeypatch, "--cell", "c") == 1
    assert "known are a, b" in capsys.readouterr().err


def test_working_copies_that_nothing_uses_any_more_go(store):
    experiments.connect()
    client = MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    for name in ("cells-old", "cells-busy"):
        with repository.hold(repository.COPIES / name, "the work", print):
            pass

    def copies(days: float) -> list[str]:
        then = time.time() + days * prune.DAY
        return [item.name for item in prune.find(client, experiment, prune.Limits(30, 5, 5), then)]

    with repository.hold(repository.COPIES / "cells-busy", "the work", print):
        assert (copies(29), copies(31)) == ([], ["cells-old"])


def test_what_does_not_let_itself_be_removed_keeps_nothing_else(tmp_path):
    def refused() -> None:
        raise UserError("has an alias now")

    folder = tmp_path / "copy"
    folder.mkdir()
    items = [prune.Item("version", "elder-csmri 1", "old", refused), prune.Item("copy", "copy", "old", folder.rmdir)]
    assert prune.remove(items) == ["version elder-csmri 1 was not removed: has an alias now"]
    assert not folder.exists()


@pytest.mark.parametrize(("module", "arguments"), [(runs, ()), (prune, ()), (rollback, ("csmri",))])
def test_without_a_store_the_commands_say_so_and_make_none(module, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert command(module, monkeypatch, *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no MLflow store here: there is no mlflow.db in this folder" in line
    assert not list(tmp_path.iterdir())
    assert command(module, monkeypatch, "--help") == 0
    assert f"python -m {module.__name__}" in capsys.readouterr().out


def files_of(run: Run) -> Path:
    """The folder of a run's files, with one in it."""
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text("psnr\n")
    return folder


def test_old_repros_go_and_the_latest_run_of_each_result_stays(three, monkeypatch, capsys):
    files = {run.info.run_id: files_of(run) for run in all_runs(three)}
    assert command(prune, monkeypatch, "--repros", "1") == 0
    assert "would go: 3 runs, 0 versions, 0 checkpoints, 0 copies; --yes removes them" in capsys.readouterr().out
    assert {run.info.run_id for run in all_runs(three)} == files.keys()
    assert command(prune, monkeypatch, "--repros", "1", "--yes") == 0
    assert "removed: 3 runs" in capsys.readouterr().out
    left = all_runs(three)
    # DVC has skipped b since the first repro, so that this is its latest run.
    kept = sorted(run.data.tags.get("cell") or run.data.tags["repro"] for run in left)
    assert kept == ["evaluate a", "evaluate b", "flow 0", "flow 2"]
    assert {name for name, folder in files.items() if folder.exists()} == {run.info.run_id for run in left}
    assert command(prune, monkeypatch, "--repros", "0", "--days", "0", "--yes") == 0
    assert len(all_runs(three)) == 4


def test_runs_go_by_their_age_and_not_while_they_run(store):
    result("tune a", seed=0)
    result("tune a", seed=1)
    client, experiment = experiments.open_existing()
    client.create_run(experiment, run_name="at work", tags={"cell": "tune a", **repros.owner()})
    client.create_run(experiment, run_name="of another program")
    limits, now = prune.Limits(30, 5, 5), time.time()
    assert prune.find(client, experiment, limits, now + 29 * prune.DAY) == []
    (item,) = prune.find(client, experiment, limits, now + 31 * prune.DAY)
    assert item.reason == "older than 30 days"
    item.remove()
    seeds = {run.info.run_name: run.data.params.get("seed") for run in all_runs(store)}
    assert seeds == {"tune a": "1", "at work": None, "of another program": None}


def test_a_result_that_was_made_again_is_as_young_as_that(store):
    """Its run begins when it was made first, and ends when it was made last."""
    result("tune a", seed=0)
    result("tune a", seed=1)
    result("tune a", seed=0)
    client, experiment = experiments.open_existing()
    again, other = sorted(all_runs(store), key=lambda run: run.data.params["seed"])
    with sqlite3.connect(store / "mlflow.db") as connection:  # MLflow sets no start
        for run, start, end in ((again, 100, 1), (other, 50, 50)):
            moments = [int((time.time() - days * prune.DAY) * 1000) for days in (start, end)]
            connection.execute(
                "UPDATE runs SET start_time = ?, end_time = ? WHERE run_uuid = ?", (*moments, run.info.run_id)
            )
    (item,) = prune.find(client, experiment, prune.Limits(40, 20, 10), time.time())
    item.remove()
    (left,) = all_runs(store)
    assert left.data.params["seed"] == "0"


def test_the_cache_that_copies_share_is_no_copy(store):
    client, experiment = experiments.open_existing()
    for name, file in ((repository.CACHE, "files/md5/00/1"), ("old", "dvc.yaml")):
        path = store / repository.COPIES / name / file
        path.parent.mkdir(parents=True)
        path.touch()
    items = prune.find(client, experiment, prune.Limits(10, 20, 10), time.time() + 20 * prune.DAY)
    assert [(item.kind, item.name) for item in items] == [("copy", "old")]


def test_files_of_another_project_stay(store, tmp_path):
    """A copied project has the absolute paths of the original in its store."""
    result("tune a", seed=0)
    result("tune a", seed=1)
    files = [files_of(run) for run in all_runs(store)]
    (tmp_path / "copy").mkdir()
    shutil.copy(store / "mlflow.db", tmp_path / "copy")
    client = MlflowClient(f"sqlite:///{tmp_path}/copy/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    (item,) = prune.find(client, experiment, prune.Limits(0, 0, 0), time.time() + 1)
    item.remove()
    assert len(all_runs(tmp_path / "copy")) == 1
    assert len(all_runs(store)) == 2
    assert all((folder / "table.csv").exists() for folder in files)


NAME = "elder-csmri"


def test_versions_that_nothing_names_go(store, monkeypatch, capsys):
    client = MlflowClient()
    client.create_registered_model(NAME)
    run_ids = [result(f"register {CELL}", seed) for seed in range(7)]
    experiment = client.get_run(run_ids[0]).info.experiment_id
    folders = {}
    for version, run_id in enumerate(run_ids, 1):
        model = client.create_logged_model(experiment, "model", run_id)
        folders[version] = Path(model.artifact_location.removeprefix("file://"))
        folders[version].mkdir(parents=True)
        (folders[version] / "weights").write_text(str(version))
        client.create_model_version(NAME, f"models:/{model.model_id}", run_id, model_id=model.model_id)
    client.set_registered_model_tag(NAME, gate.HISTORY, "1,4")
    client.set_registered_model_alias(NAME, "champion", "4")
    client.set_registered_model_alias(NAME, "challenger", "5")
    client.set_registered_model_alias(NAME, "ours", "2")
    assert command(prune, monkeypatch, "--days", "0", "--repros", "0", "--versions", "1", "--yes") == 0
    shown = capsys.readouterr().out
    assert "elder-csmri 6" in shown
    # 3 and 6 are old and without a name, 7 is the last one without.
    left = {int(version.version) for version in client.search_model_versions(f"name = '{NAME}'")}
    assert left == {1, 2, 4, 5, 7}
    assert {version for version, folder in folders.items() if folder.exists()} == left
    assert {run.info.run_id for run in all_runs(store)} == {run_ids[version - 1] for version in left}
    assert int(client.get_model_version_by_alias(NAME, "champion").version) == 4


def test_a_version_that_became_champion_meanwhile_stays(store):
    client = MlflowClient()
    client.create_registered_model(NAME)
    version = client.create_model_version(NAME, "runs:/0/model")
    (item,) = prune.find(client, client.create_experiment(EXPERIMENT), prune.Limits(90, 20, 0), time.time())
    client.set_registered_model_alias(NAME, "champion", version.version)
    with pytest.raises(UserError, match="elder-csmri 1: has an alias now"):
        item.remove()
    assert client.get_model_version_by_alias(NAME, "champion").version == version.version


def test_stale_checkpoints_go_and_held_ones_stay(store, monkeypatch, capsys):
    def checkpoint(name: str, days: float) -> Path:
        folder = store / ".checkpoints" / name
        Checkpoint(folder, 1).save(1, {"step": 1})
        for path in (folder / "state.pt", folder):
            then = time.time() - days * prune.DAY
            os.utime(path, (then, then))
        return folder

    with logs.run("tune a", {}, reads()) as log:
        pass
    ended, old, young = checkpoint(f"tune-a-{log.fingerprint}", 1), checkpoint("old-0", 91), checkpoint("young-1", 89)
    assert command(prune, monkeypatch) == 0
    assert "would go: 0 runs, 0 versions, 2 checkpoints" in capsys.readouterr().out
    assert old.exists()
    with Checkpoint(old, 1).held():
        then = time.time() - 91 * prune.DAY
        os.utime(old, (then, then))
        assert command(prune, monkeypatch, "--days", "80") == 0
        client, experiment = experiments.open_existing()
        items = prune.find(client, experiment, prune.Limits(80, 20, 10), time.time() + 90 * prune.DAY)
        (item,) = (item for item in items if item.name == "old-0")
        with pytest.raises(UserError, match="another process is training this"):
            item.remove()
    capsys.readouterr()
    ended, old = checkpoint(ended.name, 1), checkpoint("old-0", 91)
    assert command(prune, monkeypatch, "--yes") == 0
    assert "removed: 0 runs, 0 versions" in capsys.readouterr().out
    assert young.exists()
    assert not ended.exists()


@pytest.mark.parametrize("stage", ["prepare", "simulate", "code", "report", "evaluate"])
def test_a_stage_starts_without_mlflow(stage):
    """It takes seconds to import, and stages that fail on their settings, or log nothing, do not need it."""
    code = f"import sys, stages.{stage}; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_report_of_a_repro_has_an_address_for_browsers(store, monkeypatch):
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiment = client.create_experiment(EXPERIMENT, artifact_location=str(store / "mlruns" / EXPERIMENT))
    mine, later = (client.create_run(experiment, tags={"repro": name}).info.run_id for name in ("flow 1", "flow 2"))
    for run_id in (mine, later):
        client.log_text(run_id, "the report", links.PAGE)
    monkeypatch.delenv(links.VARIABLE, raising=False)
    assert links.VARIABLE in links.find("flow 1")["needs"]
    monkeypatch.setenv(links.VARIABLE, "https://mlflow.example/")
    page = f"https://mlflow.example/#/experiments/{experiment}/runs"
    assert links.find("flow 1") == {"run": f"{page}/{mine}", "report": f"{page}/{mine}/artifacts/index.html"}
    assert links.find("a flow that ran nothing")["run"] == f"{page}/{later}"
