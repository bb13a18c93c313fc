"""Where runs and models are kept: found by one rule, and moved with its project."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import requests
import torch
from conftest import ROOT, forget_store
from mlflow import MlflowClient

import elder
from elder import UserError
from elder.model import store
from elder.problems.samples import measure
from pipeline.registry import gate
from pipeline.tracking import experiments
from stages import store as stage

URI = "models:/elder-csmri@champion"


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "DVC_"))]:
        monkeypatch.delenv(name)
    forget_store()
    yield
    forget_store()


@pytest.fixture(scope="module")
def project(tmp_path_factory, small_model) -> Path:
    """A folder with a store and a champion."""
    folder = tmp_path_factory.mktemp("project")
    small_model.save(folder / "bundle")
    picture = torch.rand((1, 1, 20, 24), generator=torch.Generator().manual_seed(0))
    candidate = gate.Candidate(
        small_model.problem, folder / "bundle", 30.0, "a", measure(small_model.problem, ["x"], [picture])
    )
    before = Path.cwd()
    os.chdir(folder)
    try:
        experiments.connect()
        mlflow.set_experiment(store.EXPERIMENT)
        with mlflow.start_run():
            assert gate.register(candidate, 0.1).promoted
    finally:
        forget_store()
        os.environ.pop(store.VARIABLE, None)
        os.chdir(before)
    return folder


def locations(folder: Path) -> set[str]:
    """Every path of an artifact that the store notes."""
    with sqlite3.connect(folder / "mlflow.db") as connection:
        rows = [row for table, column in store.NOTED for row in connection.execute(f"SELECT {column} FROM {table}")]  # noqa: S608
    return {path for (path,) in rows if not path.startswith("models:/")}


@pytest.mark.parametrize("name", ["copy", "a b/é", "50% #1"])
def test_a_project_that_was_copied_and_renamed_away_has_its_champion(project, name, tmp_path, monkeypatch):
    copy = tmp_path / name
    shutil.copytree(project, tmp_path / "original")
    shutil.copytree(tmp_path / "original", copy)
    (tmp_path / "original").rename(tmp_path / "away")
    monkeypatch.chdir(copy)
    weights = elder.load(URI).regularizer.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in elder.load("bundle").regularizer.state_dict().items())
    assert all(path.startswith(store.noted(copy / "mlruns")) for path in locations(copy))
    # MLflow by itself finds it too.
    mlflow.set_tracking_uri(store.here())
    y, mask = torch.zeros(1, 20, 24, 2).numpy(), torch.ones(20, 24, dtype=torch.uint8).numpy()
    assert mlflow.pyfunc.load_model(URI).predict({"measurement": y, "mask": mask}).shape == (1, 20, 24)


def test_a_copy_leaves_the_original_alone(project, tmp_path, monkeypatch):
    shutil.copytree(project, tmp_path / "copy")
    content = {path: path.read_bytes() for path in sorted(project.rglob("*")) if path.is_file()}
    monkeypatch.chdir(tmp_path / "copy")
    elder.load(URI)
    experiments.connect()
    mlflow.set_experiment(store.EXPERIMENT)
    with mlflow.start_run():
        mlflow.log_text("a", "b.txt")
    assert {path: path.read_bytes() for path in sorted(project.rglob("*")) if path.is_file()} == content
    assert not store.settle(Path("mlflow.db"))


def test_artifacts_that_are_elsewhere_on_purpose_stay_there(project, tmp_path, monkeypatch):
    elsewhere = tmp_path / "large disk" / "mlruns" / "7"
    elsewhere.mkdir(parents=True)
    shutil.copytree(project, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    MlflowClient(store.here()).create_experiment("large", artifact_location=str(elsewhere))
    assert store.settle(Path("mlflow.db"))
    assert str(elsewhere) in locations(tmp_path / "copy")


def test_the_store_is_what_was_set_then_the_variable_then_the_file(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert store.address() is None
    monkeypatch.chdir(project)
    assert store.address() == f"sqlite:///{project}/mlflow.db"
    monkeypatch.setenv(store.VARIABLE, "http://127.0.0.1:5000")
    assert store.address() == "http://127.0.0.1:5000"
    mlflow.set_tracking_uri("sqlite:////elsewhere/mlflow.db")
    assert store.address() == "sqlite:////elsewhere/mlflow.db"


def test_a_look_from_elsewhere_makes_no_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no mlflow\.db in this folder, and MLFLOW_TRACKING_URI is not set"):
        elder.load(URI)
    monkeypatch.setenv(store.VARIABLE, f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(UserError, match="no such store; correct MLFLOW_TRACKING_URI"):
        elder.load(URI)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_store_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sqlite3.connect("mlflow.db").close()
    Path("mlflow.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match=r"mlflow\.db: can't be used as a store"):
        elder.load(URI)


@pytest.mark.parametrize("name", ["what?", "100%25"])
def test_a_folder_that_mlflow_can_t_use_is_refused(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(UserError, match="rename it"):
        experiments.connect()
    assert not Path("mlflow.db").exists()


def test_a_server_that_is_down_is_told_in_one_line(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    code = f"import elder.cli; elder.cli.main(['evaluate', '{URI}', '--images', '.', '--out', 'o'])"
    done = python(code, tmp_path, MLFLOW_TRACKING_URI=address)
    assert done.stderr.count("\n") == 1
    assert f"{address}: the MLflow server does not answer" in done.stderr
    done = python(
        "from pipeline.tracking import experiments; experiments.connect()", tmp_path, MLFLOW_TRACKING_URI=address
    )
    assert "UserError" in done.stderr.splitlines()[-1]


def test_processes_that_start_together_make_one_store(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    code = (
        "from pipeline.tracking import experiments; experiments.connect(); "
        "import mlflow; print(mlflow.set_experiment('elder'))"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), store.VARIABLE: uri},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    printed = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(printed) == 1
    assert locations(tmp_path) >= {f"{tmp_path}/mlruns/elder"}


def test_a_new_store_is_told_from_the_one_before(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    known = stage.identity()
    assert stage.identity() == known
    shutil.copytree(project, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert stage.identity() == known
    Path("mlflow.db").unlink()
    made = python("from stages import store; print(store.identity())", tmp_path / "copy").stdout.strip()
    assert made != known
    assert stage.identity() == made


def test_a_look_at_a_known_store_is_quick(project):
    """Every `dvc repro` takes one."""
    code = (
        "import sys; from stages import store; store.identity(); print({'torch', 'mlflow', 'numpy'} & {*sys.modules})"
    )
    assert python(code, project).stdout == "set()\n"


@pytest.mark.parametrize(("asked", "registers"), [("", False), ("experiments: true", True)])
def test_in_an_experiment_nothing_is_registered_unless_asked(asked, registers, project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setenv(stage.IN_EXPERIMENT, "0123")
    (project / "params.yaml").write_text(f"register: {{{asked}}}\n")
    stage.main(tmp_path / "store.txt")
    assert (tmp_path / "store.txt").read_text().startswith("none") != registers


def test_a_model_from_a_server_leaves_nothing_behind(project, tmp_path):
    """And the gate, the list and the loading work on a server as on a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    shutil.copytree(project, tmp_path / "server")
    store.settle(tmp_path / "server" / "mlflow.db")
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "mlruns"]
    server = subprocess.Popen(
        command, cwd=tmp_path / "server", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(1800):  # of 0.1 s: on a busy machine a server starts slowly
            try:
                requests.get(f"{address}/health", timeout=1)
                break
            except requests.RequestException:
                time.sleep(0.1)
        code = f"import elder; print(elder.load('{URI}').hyperparameters.sigma)"
        loaded = python(code, tmp_path, MLFLOW_TRACKING_URI=address, TMPDIR=str(tmp_path / "temporary"))
        assert loaded.stdout == "0.1\n", loaded.stderr
        assert list((tmp_path / "temporary").iterdir()) == []
        listed = python("import elder.cli; elder.cli.main(['models'])", tmp_path, MLFLOW_TRACKING_URI=address)
        assert "challenger, champion    30.00" in listed.stdout
    finally:
        os.killpg(server.pid, 15)
        server.wait()
