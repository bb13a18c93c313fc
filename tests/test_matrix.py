"""The matrix in working copies: what goes into a copy, what comes back, and whole runs on threads, Dask and Ray."""

from __future__ import annotations

import copy
import importlib.util
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import yaml
from conftest import ROOT, Project, copy_project, forget_store
from mlflow import MlflowClient
from prefect import get_client
from prefect.exceptions import ParameterTypeError
from prefect.task_runners import ThreadPoolTaskRunner
from test_ends import named, processes_in
from test_flows import free_port, wait_until
from test_flows_deployments import server  # noqa: F401  a fixture

from elder import UserError
from pipeline import collect
from pipeline.flows import cluster, command, commands, copies, graph, lockfile, matrix, process, repository
from pipeline.flows.cluster import Cluster
from pipeline.flows.commands import StageFailed
from pipeline.flows.copies import Delivery, Job, JobFailed, Sharing
from pipeline.flows.flow import train
from pipeline.tracking import experiments, logs
from pipeline.tracking.fingerprints import Reads

EXAMPLE = ROOT / "docs" / "examples" / "slurm.py"


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: {cluster.EXTRA}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty project."""
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
    return tmp_path


# What runs where


def test_the_matrix_is_what_writes_nothing_that_cells_share():
    before, batches, after = graph.parted(graph.read(ROOT)[0])
    assert [group.name for group in before] == ["code", "prepare"]
    names = [[group.name for group in batch] for batch in batches]
    assert names == [["simulate", "baseline"], ["pretrain"], ["tune", "finetune", "evaluate"]]
    assert [group.name for group in after] == ["store", "register", "report"]


def test_a_graph_without_a_matrix_has_none():
    groups = [graph.Group("one"), graph.Group("two")]
    assert graph.parted(groups) == (groups, [], [])
    assert graph.parted([]) == ([], [], [])


# Settings


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"runner": "slurm"}, "runner: Input should be 'local', 'dask' or 'ray'"),
        ({"at_once": 0}, "at_once: Input should be greater than or equal to 1"),
        ({"cluster": {"threads": 0}}, "cluster.threads: Input should be greater than or equal to 1"),
        ({"cluster": {"adress": "x"}}, "cluster.adress: Extra inputs are not permitted"),
    ],
)
def test_a_parameter_that_can_t_be_right_is_refused(parameters, message):
    with pytest.raises(ParameterTypeError) as refused:
        train.validate_parameters(parameters)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("engine", "at_once", "settings", "message"),
    [
        ("local", 1, {"address": "tcp://host:8786"}, r"^cluster\.address: runner local has none"),
        ("local", 2, {"gpus": 1}, r"^cluster\.gpus: local hands out none"),
        ("local", 2, {"copies": "copies"}, r"^cluster\.copies: copies must be an absolute path"),
        ("local", 2, {"remote": "shared"}, r"^cluster\.remote: DVC knows no remote shared; it knows none$"),
        ("dask", 2, {"address": "tcp://127.0.0.1:1"}, r"^at_once: the cluster at cluster\.address has workers"),
        ("dask", 1, {"address": "tcp://127.0.0.1:1"}, r"^cluster\.address: nothing answers at tcp://127\.0\.0\.1:1 \("),
        ("ray", 1, {"address": "127.0.0.1:1"}, r"^cluster\.address: nothing answers at 127\.0\.0\.1:1 \("),
        ("dask", 1, {"address": "host"}, r"^cluster\.address: host is no address; give tcp://host:8786"),
        ("dask", 1, {"address": "tcp://host:port"}, r"^cluster\.address: tcp://host:port is no address"),
    ],
)
def test_a_site_that_can_t_be_is_one_line(engine, at_once, settings, message, folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match=message) as refused:
        cluster.site(engine, at_once, Cluster(**settings), folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_a_package_that_is_missing_names_its_extra(engine, folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"^runner: {engine} needs the extra `cluster`, .*\[cluster\]'$"):
        cluster.site(engine, 1, Cluster(), folder)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--cell", "nosuch"], r"cells: params\.yaml has no cell nosuch; it has .*csmri-least_squares"),
        (
            ["--gpus", "1", "--threads", "2"],
            r"cluster\.threads, cluster\.gpus: cells one by one in the project take none",
        ),
        (["--at-once", "0"], r".* at_once: Input should be greater than or equal to 1"),
    ],
)
def test_the_command_refuses_in_one_line_before_a_server_starts(given, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["flows", *given])
    checks_only = SimpleNamespace(validate_parameters=train.validate_parameters)  # calling it would be an error
    monkeypatch.setattr(command, "train", checks_only)
    with pytest.raises(SystemExit, match=f"^flows: {message}"):
        command.main()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("params.yaml", "cells: [", r"params\.yaml is no valid YAML: .* line 1"),
        ("params.yaml", "cells: 5", r"^cells: 5 in params\.yaml must be a section"),
        ("params.yaml", "cells: {csmri-red: red}", r"^cells\.csmri-red: 'red' in params\.yaml must be a problem and"),
        ("dvc.yaml", "stages: {", r"dvc\.yaml is no valid YAML: .* line 1"),
    ],
)
def test_a_file_that_can_t_be_read_is_one_line(file, text, message, tmp_path):
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        graph.read(tmp_path)
    assert "\n" not in str(refused.value)


def test_cells_one_by_one_on_this_machine_need_no_copies(folder):
    assert cluster.site("local", 1, Cluster(address="", threads=None), folder) is None  # as Prefect's form sends them


def test_cells_share_the_cores_unless_the_environment_says_otherwise(folder, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cluster.site("local", 3, Cluster(), folder).variables["OMP_NUM_THREADS"] == "2"
    assert cluster.site("local", 16, Cluster(), folder).variables["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert cluster.site("local", 3, Cluster(), folder).variables["OMP_NUM_THREADS"] == "5"
    assert cluster.site("local", 3, Cluster(threads=4), folder).variables["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize(
    ("uri", "shared"),
    [
        ("", False),
        ("sqlite:////home/you/mlflow.db", False),
        ("file:///home/you/mlruns", False),
        ("mlruns", False),
        ("http://127.0.0.1:5000", True),
        ("postgresql://you@host/mlflow", True),
    ],
)
def test_a_store_that_takes_one_writer_is_not_shared(uri, shared, monkeypatch):
    monkeypatch.setenv(matrix.STORE, uri)
    assert matrix.shared_store() is shared


def test_a_cluster_without_a_worker_is_told():
    class Client:
        def scheduler_info(self):
            return {"workers": {}}

    class Runner(ThreadPoolTaskRunner):
        client = Client()

    site = cluster.Site(Runner, "tcp://host:8786", Path("/copies"), Sharing("cache"), {}, {})
    with pytest.raises(ValueError, match=r"^cluster\.address: tcp://host:8786 has had no worker for 0 s"):
        cluster.await_workers(Runner(), site, 0.0)


def test_what_the_nodes_of_a_cluster_have_together_runs_no_job(monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}]
    nodes.append({"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}})
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(nodes=lambda: nodes))

    def missing(cpus: int, gpus: float) -> str:
        options = {"num_cpus": cpus, "num_gpus": gpus}
        return cluster._missing(
            None, cluster.Site(ThreadPoolTaskRunner, "host:6379", Path("/copies"), Sharing("cache"), {}, options)
        )

    assert (missing(4, 0), missing(4, 1)) == ("", "")
    assert missing(8, 0) == "node with 8 processors"
    assert missing(1, 2) == "node with 1 processors and 2 GPUs"


def test_ray_on_a_machine_without_what_a_cell_asks_for_is_refused_at_once(monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}]
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(nodes=lambda: nodes))

    def here(gpus: float) -> cluster.Site:
        options = {"num_cpus": 1, "num_gpus": gpus}
        return cluster.Site(ThreadPoolTaskRunner, "", Path("/copies"), Sharing("cache"), {}, options)

    runner: Any = None
    cluster.await_workers(runner, here(0), 3600)
    with pytest.raises(ValueError, match=r"this machine has no node with 1 processors and 1 GPUs; ask for less$"):
        cluster.await_workers(runner, here(1), 3600)


def test_results_that_can_t_be_gathered_fail_their_cell_and_no_other(folder, monkeypatch):
    def gather(*arguments: object) -> None:
        raise StageFailed("cells-a: another DVC process holds the repository")

    monkeypatch.setattr(matrix, "gather", gather)
    made = Path(job(folder).copies) / "cells-a"
    made.mkdir(parents=True)
    future: Any = SimpleNamespace(result=Delivery)
    told = matrix._take(future, job(folder), folder, 60.0)
    assert told == "gather cells-a: cells-a: another DVC process holds the repository"
    assert made.exists()  # the next run takes the results from there


# What goes into a copy


def names(packed: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as file:
        return set(file.getnames())


def test_a_snapshot_has_code_settings_and_what_they_name_and_no_pictures(folder):
    for name in ("stages/tune.py", "stages/__pycache__/tune.pyc", "own/problem.py", "data/raw/mask.npy", "dvc.yaml"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for name in (
        "data/raw/k.mat",
        "data/raw/1.png",
        "data/raw/start/config.json",
        "data/prepared/train/1.npy",
        "models/tuned/a/x",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    settings = {
        "own_code": "own",
        "problems": {"csmri": {"mask": "data/raw/mask.npy", "ratio": 0.2}, "deblur": {"kernel": "data/raw/k.mat:3"}},
        "pretrain": {"init": "data/raw/start"},
        "prepare": {"folder": "data/raw", "source": "folder"},
        "evaluate": {"robustness": {"csmri": [{"mask": "../outside.npy"}, {"mask": "radial"}, {"mask": "."}]}},
    }
    (folder.parent / "outside.npy").write_text("not of this project")
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    assert names(copies.snapshot(folder)) == {
        ".dvc/config",
        "dvc.yaml",
        "params.yaml",
        "stages/tune.py",
        "own/problem.py",
        "data/raw/mask.npy",
        "data/raw/k.mat",
        "data/raw/start/config.json",
    }


def job(folder: Path, **changes) -> Job:
    settings = {
        "name": "cells-a",
        "stages": ("tune@a",),
        "copies": str(folder / "copies"),
        "sharing": Sharing(str(folder / ".dvc" / "cache")),
        "timeout": 60.0,
        "snapshot": copies.snapshot(folder),
        "locked": {},
        "variables": {},
        "own_store": True,
    }
    return Job(**settings | changes)


def test_a_copy_that_is_used_again_loses_old_code_and_keeps_checkpoints(folder, monkeypatch):
    monkeypatch.setattr(commands, "run", lambda *_, **__: [])
    (folder / "stages").mkdir()
    (folder / "stages" / "new.py").write_text("new")
    copy = folder / "copies" / "cells-a"
    for name in ("stages/old.py", ".dvcignore", ".checkpoints/finetune-a-1/state.pt", "mlflow.db"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("old")
    copies._fill(copy, job(folder))
    assert [path.name for path in (copy / "stages").iterdir()] == ["new.py"]
    assert not (copy / ".dvcignore").exists()
    assert (copy / ".checkpoints" / "finetune-a-1" / "state.pt").exists()
    assert (copy / "mlflow.db").exists()


@pytest.mark.parametrize("remote", ["", "shared store"])
def test_dvc_reads_the_settings_of_a_copy(remote, folder):
    from dvc.config import Config

    (folder / ".dvc" / "config.local").write_text(
        Sharing("/project/.dvc/cache", remote, "/mnt/elder").config(folder / "copies")
    )
    config = Config(str(folder / ".dvc"))
    assert config["core"]["no_scm"] is True
    assert config["cache"]["dir"] == (str(folder / "copies" / "cache") if remote else "/project/.dvc/cache")
    assert config["remote"].get(remote, {}).get("url") == ("/mnt/elder" if remote else None)


def test_a_machine_that_does_not_see_the_cache_says_so(folder):
    with pytest.raises(commands.StageFailed, match=r"does not see the DVC cache /nowhere; .*set cluster\.remote"):
        copies.run(job(folder, sharing=Sharing("/nowhere")), print)


# What comes back

ENTRY = {
    "cmd": "python -m stages.tune",
    "deps": [{"path": "a", "hash": "md5", "md5": "12345678901234567890123456789e12", "size": 3}],
    "params": {"params.yaml": {"tune.tol": 1e-05, "tune.factors": [2.0, 1.4], "tune.name": "yes"}},
}


def test_entries_of_the_lock_file_come_back_as_dvc_reads_them(folder):
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils import strictyaml

    lockfile.merge(folder, {"prepare": {"cmd": "old"}, "code": {"cmd": "code"}})
    lockfile.merge(folder, {"tune@a": ENTRY, "prepare": {"cmd": "new"}})
    found, _ = strictyaml.load(str(folder / "dvc.lock"), COMPILED_LOCKFILE_SCHEMA)
    assert found["stages"] == {"prepare": {"cmd": "new"}, "code": {"cmd": "code"}, "tune@a": ENTRY}
    assert lockfile.read(folder) == found["stages"]


def test_a_lock_file_that_dvc_holds_is_left_alone(folder):
    lockfile.merge(folder, {"code": {"cmd": "code"}})
    with repository.locked(folder, "lock"), pytest.raises(commands.RepositoryBusy):
        lockfile.merge(folder, {"tune@a": ENTRY})
    assert list(lockfile.read(folder)) == ["code"]


def test_a_failure_brings_along_what_was_made_before_it():
    # A worker's error reaches the flow as Python's copy protocol rebuilds it.
    error = copy.deepcopy(JobFailed("finetune@a: out of memory", Delivery({"tune@a": ENTRY}, b"store")))
    assert str(error) == "finetune@a: out of memory"
    assert (error.delivery.locked, error.delivery.store) == ({"tune@a": ENTRY}, b"store")


@pytest.fixture
def stores(tmp_path, empty_store, monkeypatch) -> Path:
    """A working copy and a project, each with an empty MLflow store."""
    monkeypatch.delenv(matrix.STORE, raising=False)
    for name in ("copy", "project"):
        (tmp_path / name).mkdir()
        shutil.copy(empty_store, tmp_path / name / "mlflow.db")
    return tmp_path


def packed(folder: Path) -> Path:
    """The store of a copy, packed, and the copy removed."""
    path = folder.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz") as file:
        for name in ("mlflow.db", "mlruns"):
            file.add(folder / name, name)
    shutil.rmtree(folder)
    return path


def test_runs_come_with_their_curves_files_and_data_and_twice_is_once(stores, monkeypatch):
    forget_store()
    monkeypatch.setenv("ELDER_REPRO", "flow 1")
    monkeypatch.chdir(stores / "copy")
    Path("images").mkdir()
    Path("images", "1.txt").write_text("1")
    Path("code.txt").write_text("code")
    Path("tune.csv").write_text("weight\n0.1\n")
    reads = Reads("tune", (Path("images"),), Path("code.txt"), (Path("images"),))
    with logs.run("tune csmri-red", {"tune": {"tol": 1e-4}}, reads) as log:
        for step, psnr in enumerate((20.0, 25.0, 24.0)):
            log.metrics({"val_psnr": psnr}, step)
        log.artifacts(Path("tune.csv"))
    path = packed(stores / "copy")
    forget_store()
    monkeypatch.chdir(stores / "project")
    assert collect.collect("flow 1", [path]) == 1
    assert collect.collect("flow 1", [path]) == 1
    client, experiment = experiments.open_existing()
    found = {run.data.tags.get("cell", "repro"): run for run in client.search_runs([experiment])}
    assert set(found) == {"repro", "tune csmri-red"}
    run, repro = found["tune csmri-red"], found["repro"]
    assert run.data.tags["mlflow.parentRunId"] == repro.info.run_id
    assert (repro.data.tags["repro"], repro.info.status, run.info.status) == ("flow 1", "FINISHED", "FINISHED")
    assert run.info.run_name == "tune csmri-red"
    assert run.data.params == {"tune.tol": "0.0001"}
    points = client.get_metric_history(run.info.run_id, "val_psnr")
    assert [(point.step, point.value) for point in points] == [(0, 20.0), (1, 25.0), (2, 24.0)]
    assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == ["images"]
    table = client.download_artifacts(run.info.run_id, "tune.csv")
    assert Path(table).read_text() == "weight\n0.1\n"
    assert Path(str(run.info.artifact_uri)).is_relative_to(stores / "project")
    # The same result, made again here, resumes the run that came.
    Path("images").mkdir()
    Path("images", "1.txt").write_text("1")
    Path("code.txt").write_text("code")
    with logs.run("tune csmri-red", {"tune": {"tol": 1e-4}}, reads):
        active = mlflow.active_run()
        assert active is not None
        assert active.info.run_id == run.info.run_id
    forget_store()


def test_a_packed_store_that_can_t_be_collected_is_not_left_behind(folder, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise commands.StageFailed("collect: the MLflow server does not answer")

    monkeypatch.setattr(matrix, "collect", refuse)
    with pytest.raises(commands.StageFailed, match="does not answer"):
        matrix.gather.fn("cells-a", Delivery(store=b"packed"), Sharing("cache"), folder, 10.0)
    assert list((folder / ".dvc" / "tmp").iterdir()) == []


def test_what_is_no_packed_store_is_named(stores, monkeypatch):
    forget_store()
    monkeypatch.chdir(stores / "project")
    Path("broken.tar.gz").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"broken\.tar\.gz: no packed store"):
        collect.collect("flow 1", [Path("broken.tar.gz")])
    forget_store()


# Slurm


def test_the_example_for_slurm_is_python_and_asks_for_one_gpu_a_worker():
    source = EXAMPLE.read_text()
    compile(source, str(EXAMPLE), "exec")
    assert "--gres=gpu:1" in source


@needs("dask_jobqueue")
def test_the_example_for_slurm_writes_a_job_script():
    spec = importlib.util.spec_from_file_location("slurm", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.cluster(free_port()) as made:
        script = made.job_script()
    assert "#SBATCH --gres=gpu:1" in script
    assert "--nthreads 1" in script
    assert "distributed.cli.dask_worker" in script or "dask worker" in script


# Whole runs, of stages that take a moment


def toy(folder: Path) -> Project:
    """A project of three cells whose stages take a moment: each notes that it ran, and adds a line to what it reads.

    Beside the project, a file `fail-STAGE` makes a stage fail, `wait-STAGE` has it take minutes, and `kill-STAGE` has
    it kill its worker: once, or each time if the file says "always".
    """
    work = folder / "project"
    (work / ".dvc").mkdir(parents=True)
    (work / ".dvc" / "config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
    (work / "stages").mkdir()
    (work / "stages" / "__init__.py").touch()  # else the stages of this project would be found
    (work / "stages" / "toy.py").write_text(
        "import os, signal, sys\nfrom pathlib import Path\nimport psutil\n"
        f"beside = Path({str(folder)!r})\n"
        "stage, source, out = sys.argv[1:]\n"
        "(beside / 'ran').open('a').write(f'{stage} {os.getcwd()}\\n')\n"
        "kill = beside / f'kill-{stage}'\n"
        "if kill.exists():\n"
        "    if 'always' not in kill.read_text():\n        kill.unlink()\n"
        "    for each in psutil.Process().parents():\n"
        "        words = ' '.join(each.cmdline())\n"
        "        if 'spawn_main' in words or words.startswith('ray::'):\n"
        "            each.kill()\n"
        "            import time; time.sleep(60)\n"
        "if (beside / f'wait-{stage}').exists():\n    import time; time.sleep(300)\n"
        "if (beside / f'fail-{stage}').exists():\n    sys.exit(f'{stage}: out of memory')\n"
        "Path(out).write_text(Path(source).read_text() + f'{stage}\\n')\n"
    )
    stages = {
        "code": {"cmd": "echo code > code.txt", "outs": ["code.txt"]},
        "pretrain": _each("regularizers", "pretrain", "code.txt", "pre-${key}.txt"),
        "tune": _each("cells", "tune", "pre-${item.regularizer}.txt", "tuned-${key}.txt"),
        "evaluate": _each("cells", "evaluate", "tuned-${key}.txt", "evaluated-${key}.txt"),
        "store": {"cmd": "echo store > store.txt", "outs": ["store.txt"]},
        "register": _each("cells", "register", "evaluated-${key}.txt", "registered-${key}.txt"),
    }
    (work / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    cells = {"a": {"regularizer": "r"}, "b": {"regularizer": "r"}, "c": {"regularizer": "q"}}
    (work / "params.yaml").write_text(yaml.safe_dump({"cells": cells, "regularizers": {"r": {}, "q": {}}}))
    return Project(work)


def _each(section: str, name: str, source: str, out: str) -> dict:
    command = f"python -m stages.toy {name}@${{key}} {source} {out}"
    return {"foreach": f"${{{section}}}", "do": {"cmd": command, "deps": [source], "outs": [out]}}


def ran(folder: Path) -> list[tuple[str, str]]:
    """The stages that ran, each with the name of the folder it ran in, since the last call."""
    path = folder / "ran"
    found = [line.split(" ", 1) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted((stage, Path(where).name) for stage, where in found)


EVERYWHERE = sorted(
    [(f"pretrain@{key}", f"regularizers-{key}") for key in "rq"]
    + [(f"{stage}@{key}", f"cells-{key}") for stage in ("tune", "evaluate") for key in "abc"]
    + [(f"register@{key}", "project") for key in "abc"]
)
ENGINES = [
    pytest.param("local", id="local"),
    pytest.param("dask", marks=needs("prefect_dask"), id="dask"),
    pytest.param("ray", marks=needs("prefect_ray"), id="ray"),
]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_cell_that_fails_stops_no_other_and_a_re_run_does_what_is_missing(engine, server, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # a cluster that is gone; the flow starts one of its own
    project = toy(tmp_path)
    (tmp_path / "fail-evaluate@b").touch()
    with pytest.raises(commands.StageFailed, match=r"^evaluate@b: exit code \d+: .*evaluate@b: out of memory"):
        train(str(project.folder), runner=engine, at_once=2)
    assert ran(tmp_path) == [entry for entry in EVERYWHERE if entry != ("register@b", "project")]
    assert [path.name for path in (project.folder / repository.COPIES).iterdir()] == ["cells-b"]
    (tmp_path / "fail-evaluate@b").unlink()
    train(str(project.folder), runner=engine, at_once=2)
    assert ran(tmp_path) == [("evaluate@b", "cells-b"), ("register@b", "project")]
    assert list((project.folder / repository.COPIES).iterdir()) == []
    assert (project.folder / "registered-c.txt").read_text() == "code\npretrain@q\ntune@c\nevaluate@c\nregister@c\n"
    assert "up to date" in project.run("dvc", "status").stdout
    train(str(project.folder))
    assert ran(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES[1:])
def test_a_cell_whose_worker_is_killed_is_begun_again(engine, server, tmp_path):  # noqa: F811
    project = toy(tmp_path)
    (tmp_path / "kill-tune@b").touch()
    train(str(project.folder), runner=engine, at_once=2)
    assert ran(tmp_path) == sorted([*EVERYWHERE, ("tune@b", "cells-b")])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES[1:])
def test_a_cell_that_kills_every_worker_fails_and_no_other_does(engine, server, tmp_path):  # noqa: F811
    project = toy(tmp_path)
    (tmp_path / "kill-tune@b").write_text("always")
    with pytest.raises(commands.StageFailed, match=r"^cells-b: \w+: "):
        train(str(project.folder), runner=engine, at_once=2)
    found = {stage for stage, _ in ran(tmp_path)}
    assert found == {stage for stage, _ in EVERYWHERE} - {"evaluate@b", "register@b"}
    with get_client(sync_client=True) as client:
        assert not [run for run in client.read_task_runs() if run.state.type.value == "RUNNING"]
    (tmp_path / "kill-tune@b").unlink()
    train(str(project.folder), runner=engine, at_once=2)
    assert [stage for stage, _ in ran(tmp_path)] == ["evaluate@b", "register@b", "tune@b"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_end_of_a_flow_is_that_of_its_cells(engine, number, server, tmp_path):  # noqa: F811
    project = toy(tmp_path)
    for key in "ab":
        (tmp_path / f"wait-tune@{key}").touch()
    script = tmp_path / "flow.py"  # whose workers import it, and must start no flow
    script.write_text(
        "from pipeline.flows.flow import train\n"
        f"if __name__ == '__main__':\n    train({str(project.folder)!r}, runner={engine!r}, at_once=2)\n"
    )
    # Agents of Ray outlive a killed flow by a minute, unless the supervisor of `python -m pipeline.flows` ends them.
    start = process.start if engine == "ray" else subprocess.Popen
    door = start([sys.executable, str(script)], cwd=tmp_path, env=process.environment())
    began = tmp_path / "ran"
    assert wait_until(lambda: began.exists() and began.read_text().count("tune@") == 2, 240)
    flow = named(tmp_path, str(script))
    flow.send_signal(number)
    assert wait_until(lambda: door.poll() is not None and not processes_in(tmp_path), 10)
    for key in "ab":
        (tmp_path / f"wait-tune@{key}").unlink()
    train(str(project.folder), runner=engine, at_once=2)
    assert (project.folder / "registered-a.txt").exists()


@pytest.mark.slow
def test_a_remote_carries_data_and_results_where_no_cache_is_shared(server, tmp_path):  # noqa: F811
    project = toy(tmp_path)
    project.run("dvc", "remote", "add", "shared", str(tmp_path / "remote"))
    elsewhere = Cluster(remote="shared", copies=str(tmp_path / "elsewhere"))
    train(str(project.folder), runner="local", at_once=2, cluster=elsewhere)
    assert ran(tmp_path) == EVERYWHERE
    assert (tmp_path / "elsewhere" / "cache").is_dir()
    assert "up to date" in project.run("dvc", "status").stdout


@contextmanager
def clustered(engine: str, folder: Path) -> Iterator[str]:
    """The address of a Dask scheduler with two workers, or of a Ray head with two processors."""
    port, environment = free_port(), process.environment() | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    address = f"tcp://127.0.0.1:{port}" if engine == "dask" else f"127.0.0.1:{port}"
    scheduler = ["dask", "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    commands = [scheduler, *2 * [["dask", "worker", address, "--nthreads", "1", "--no-dashboard"]]]
    if engine == "ray":
        head = ["--head", "--node-ip-address", "127.0.0.1", "--port", str(port), "--num-cpus", "2", "--block"]
        commands = [["ray.scripts.scripts", "start", *head, "--include-dashboard", "false"]]
    with ExitStack() as stack:
        for number, command in enumerate(commands):
            log = stack.enter_context((folder / f"{engine}-{number}.log").open("w"))
            started = process.start(
                [sys.executable, "-m", *command], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            stack.callback(process.stop, started)
            if number == 0:
                assert wait_until(lambda: is_open(port), 120), (folder / f"{engine}-0.log").read_text()
        yield address


def is_open(port: int) -> bool:
    """Whether something listens at a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("remote", ["", "shared"])
@pytest.mark.parametrize("engine", ENGINES[1:])
def test_cells_run_on_a_cluster_that_is_there_already(engine, remote, server, tmp_path):  # noqa: F811
    project = toy(tmp_path)
    project.run("dvc", "remote", "add", "shared", str(tmp_path / "remote"))
    with clustered(engine, tmp_path) as address:
        there = Cluster(address=address, threads=1, remote=remote, copies=str(tmp_path / "elsewhere"))
        train(str(project.folder), runner=engine, cluster=there)
    assert ran(tmp_path) == EVERYWHERE
    assert (tmp_path / "elsewhere" / "cache").is_dir() == bool(remote)
    assert "up to date" in project.run("dvc", "status").stdout


# Whole runs, of the tiny preset


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_matrix_gives_what_one_cell_after_the_other_gives(engine, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())))
    made = copy_project(tmp_path / "project")
    made.run(sys.executable, "-m", "pipeline.flows", "--runner", engine, "--at-once", "2")
    cells = yaml.safe_load((made.folder / "params.yaml").read_text())["cells"]
    assert len(cells) == 2
    for cell in cells:
        for name in ("metrics.json", "finetune.json", "images.csv", "tune.csv"):
            path = Path("reports") / "cells" / cell / name
            assert (made.folder / path).read_text() == (finished.folder / path).read_text()
        for folder in (f"models/tuned/{cell}", f"models/{cell}"):
            weights = Path(folder) / "weights.safetensors"
            assert (made.folder / weights).read_bytes() == (finished.folder / weights).read_bytes()
    titles = [_titles(project.folder) for project in (made, finished)]
    assert titles[0] == titles[1]
    assert (made.folder / "reports" / "index.html").exists()


def _titles(folder: Path) -> list[tuple[str, str, bool]]:
    """Title and status of every run in a store of a project, and whether it is below that of a repro."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("elder").experiment_id
    runs = client.search_runs([experiment])
    repros = {run.info.run_id for run in runs if "repro" in run.data.tags}
    return sorted(
        (run.data.tags.get("cell", "repro"), run.info.status, run.data.tags.get("mlflow.parentRunId") in repros)
        for run in runs
    )
