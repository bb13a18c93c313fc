"""The gate before the champion, on a real MLflow store."""

from __future__ import annotations

import copy
import errno
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import requests
import torch
from conftest import ROOT, forget_store
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import elder
from elder import UserError, problems
from elder.model import store as address_store
from elder.problems.samples import measure
from pipeline import prune, rollback
from pipeline.registry import gate, packaging

NAME = "elder-csmri"


@pytest.fixture
def store(empty_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_experiment("test")
    yield MlflowClient()
    forget_store()


@pytest.fixture
def register(store, small_model, tmp_path, rng):
    """Register the small model as if it were another, of the PSNR given; its problem may be another too."""
    pictures = {1: torch.rand((1, 1, 20, 24), generator=rng)}

    def registered(
        psnr: float, data: str = "a", label: str | None = None, weight: float | None = None, code: str = "", **settings
    ):
        model = replace(small_model, problem=small_model.problem.override(settings), metadata={"label": label or psnr})
        bundle = tmp_path / f"bundle-{label or psnr}"
        if weight is not None:
            model = replace(model, regularizer=spoiled(model.regularizer, weight))
        model.save(bundle)
        samples = measure(model.problem, ["x"], [pictures[1]])
        candidate = gate.Candidate(model.problem, bundle, psnr, data, samples, f"the card of {label or psnr}", code)
        return gate.register(candidate, margin=0.1)

    return registered


def spoiled(regularizer, weight: float):
    other = copy.deepcopy(regularizer)
    next(iter(other.parameters())).data.fill_(weight)
    return other


def alias(store: MlflowClient, name: str) -> int:
    return int(store.get_model_version_by_alias(NAME, name).version)


def versions(store: MlflowClient) -> list[int]:
    return sorted(int(version.version) for version in store.search_model_versions(f"name = '{NAME}'"))


def test_the_champion_moves_only_through_the_gate(store, register, monkeypatch):
    first = register(30.0)
    assert first.promoted
    assert first.champion_psnr is None
    worse = register(30.05)
    assert not worse.promoted
    assert (alias(store, "champion"), alias(store, "challenger")) == (1, 2)
    assert "less than 0.1" in worse.reason
    assert register(30.2).promoted
    assert alias(store, "champion") == 3
    # On other data the champion is measured again: its earlier 30.2 dB say nothing there.
    other = register(60.0, data="b")
    assert other.champion_psnr != pytest.approx(30.2)
    assert other.promoted
    monkeypatch.setattr(gate, "smoke", lambda *arguments: False)
    broken = register(90.0, data="b")
    assert not broken.promoted
    assert "not finite" in broken.reason


def test_a_champion_gives_way_to_itself_with_changed_code(store, register):
    """So what was mended in the code reaches those who ask for the champion, though the weights are the same."""
    register(30.0, code="old")
    mended = register(30.0, code="new")
    assert (mended.version, mended.promoted, mended.reason) == (2, True, "champion 1 with changed code")
    assert register(30.0, code="new").version == 2
    assert not register(30.05, code="new").promoted
    register(29.0, code="new")
    assert not register(29.0, code="newest").promoted
    assert versions(store) == [1, 2, 3, 4, 5]
    assert alias(store, "champion") == 2


def test_other_code_brings_back_only_what_was_taken_down_for_its_code(store, register):
    register(30.0, code="old")
    register(30.0, code="broken")
    gate.roll_back(store, NAME)
    assert "rolled back" in register(30.0, code="broken").reason
    assert alias(store, "champion") == 1
    assert register(30.0, code="mended").promoted
    assert alias(store, "champion") == 3
    register(31.0, code="mended")
    gate.roll_back(store, NAME)
    kept = register(31.0, code="newest")
    assert (kept.version, kept.promoted) == (5, False)
    assert "rolled back" in kept.reason
    assert alias(store, "champion") == 3


def test_what_a_version_carries_is_found_in_the_manifest():
    manifest = "a1  elder.model\nb1  pipeline.registry.gate\nc1  pipeline.registry.served_model\nd1  mine/problem.py\n"
    before = packaging.code_hash(manifest)
    assert packaging.code_hash(manifest.replace("b1", "b2")) == before
    assert len({before, *(packaging.code_hash(manifest.replace(old, "e1")) for old in ("a1", "c1", "d1"))}) == 4


def test_a_registration_can_be_repeated(store, register):
    """As after a kill, at any moment: one version a bundle, and the champion is not its own rival."""
    register(30.0)
    again = register(30.0)
    assert (again.version, again.promoted, again.reason) == (1, True, "it is the champion already")
    register(29.0)
    register(29.0)
    assert versions(store) == [1, 2]
    cards = [store.get_model_version(NAME, number).description for number in ("1", "2")]
    assert cards == ["the card of 30.0", "the card of 29.0"]
    assert alias(store, "champion") == 1
    assert gate.past_champions(store, NAME) == [1]


@pytest.mark.parametrize(
    ("psnr", "weight", "reason"),
    [
        (float("nan"), None, "PSNR is not finite"),
        (float("inf"), None, "PSNR is not finite"),
        (50.0, float("nan"), "weights are not finite"),
    ],
)
def test_what_is_not_finite_is_no_champion(psnr, weight, reason, store, register):
    """Neither the first, nor in place of another."""
    assert reason in register(psnr, label="bad", weight=weight).reason
    with pytest.raises(MlflowException):
        store.get_model_version_by_alias(NAME, "champion")
    assert register(20.0).promoted
    assert not register(psnr, label="worse", weight=weight).promoted
    assert alias(store, "champion") == 2


def test_a_registry_that_fails_promotes_nothing(store, register, monkeypatch):
    register(30.0)

    def fails(self, name):
        raise MlflowException("the server is on fire")

    monkeypatch.setattr(MlflowClient, "get_registered_model", fails)
    with pytest.raises(MlflowException, match="on fire"):
        register(10.0)
    monkeypatch.undo()
    assert alias(MlflowClient(), "champion") == 1


def test_a_champion_that_can_not_be_loaded_is_replaced(store, register):
    register(30.0)
    for artifacts in Path().glob("mlruns/**/artifacts"):
        shutil.rmtree(artifacts, ignore_errors=True)
    replaced = register(20.0, data="b")
    assert replaced.promoted
    assert "champion 1 can't be loaded" in replaced.reason


@pytest.mark.parametrize("lost", ["artifacts", "artifacts/*/weights.safetensors", "artifacts/MLmodel"])
def test_a_version_whose_files_are_gone_is_registered_again(lost, store, register):
    """As after a clean-up of the artifact store: what is trained is there, and comes back by itself."""
    register(30.0)
    for path in Path().glob(f"mlruns/**/{lost}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = register(30.0)
    assert (again.version, again.promoted, again.reason) == (2, True, "champion 1 has lost files")
    assert elder.load(f"models:/{NAME}@champion").metadata["label"] == 30.0
    assert register(30.0).version == 2
    assert versions(store) == [1, 2]


def test_files_that_come_back_move_no_champion(store, register, tmp_path):
    """As of an artifact store that was not mounted for a while."""
    register(30.0)
    (artifacts,) = Path().glob("mlruns/*/models/*/artifacts")
    artifacts.rename(tmp_path / "away")
    assert register(30.0).version == 2
    (tmp_path / "away").rename(artifacts)
    assert (register(30.0).version, alias(store, "champion")) == (2, 2)
    assert gate.past_champions(store, NAME) == [1, 2]


def test_code_that_was_rolled_back_does_not_return_with_a_version_that_replaces_lost_files(store, register):
    register(30.0, code="old")
    register(30.0, code="broken")
    gate.roll_back(store, NAME)
    for path in Path().glob("mlruns/*/models/*/artifacts"):
        shutil.rmtree(path)
    again = register(30.0, code="broken")
    assert (again.version, again.promoted) == (3, False)
    assert "rolled back" in again.reason
    assert alias(store, "champion") == 1


@pytest.mark.parametrize(
    "failure",
    [
        MlflowException("the database is locked"),
        OSError(errno.ENOSPC, "no space left on device"),
        requests.exceptions.ConnectionError("connection refused"),
        requests.exceptions.HTTPError("bad gateway", response=SimpleNamespace(status_code=502)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_champion_that_can_not_be_read_now_stays(failure, store, register, monkeypatch):
    """Nothing says that it is worse."""
    register(30.0)

    def fails(**_):
        raise failure

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", fails)
    with pytest.raises(UserError, match=r"can't be read from .* now"):
        register(10.0, data="b")
    monkeypatch.undo()
    assert alias(store, "champion") == 1
    assert not register(10.0, data="b").promoted


def test_a_server_that_does_not_answer_in_time_is_no_store_without_a_model(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(address_store, "PATIENCE", 0.1)
        with pytest.raises(UserError, match="does not answer") as told:
            address_store.check(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert told.value.temporary


def test_a_model_for_another_problem_does_not_dethrone(store, register):
    """One for 90 % of k-space has a higher PSNR than one for 40 %, and is no better."""
    register(30.0)
    easier = register(45.0, data="b", ratio=0.9)
    assert not easier.promoted
    assert '"ratio": 0.9' in easier.reason
    assert f"python -m pipeline.rollback csmri --to {easier.version}" in easier.reason
    assert alias(store, "champion") == 1


def test_a_champion_that_another_machine_moves_is_judged_again(store, register, monkeypatch):
    """Of two registrations at once, the better one is champion in the end."""
    register(30.0)
    best = register(40.0, label="best")
    store.set_registered_model_alias(NAME, "champion", "1")
    judged = gate._judged
    calls = []

    def meanwhile(candidate, version, before, refusal, margin):
        calls.append(before.version)
        if len(calls) == 1:  # the other one finishes between our judgment and our promotion
            store.set_registered_model_alias(NAME, "champion", str(best.version))
        return judged(candidate, version, before, refusal, margin)

    monkeypatch.setattr(gate, "_judged", meanwhile)
    assert not register(35.0).promoted
    assert [int(version) for version in calls] == [1, best.version]
    assert alias(store, "champion") == best.version


@pytest.mark.slow
def test_a_registration_that_is_killed_is_completed_by_the_next(tmp_path, small_model):
    """Ten kills at moments drawn at random, then one that is left alone: no version twice, the best one champion."""
    code = (
        "import sys, mlflow, torch\n"
        "from pathlib import Path\n"
        "import elder\n"
        "from elder.problems.samples import measure\n"
        "from pipeline.registry import gate\n"
        "from pipeline.tracking import experiments\n"
        "print('started', flush=True)\n"
        "bundle, psnr = Path(sys.argv[1]), float(sys.argv[2])\n"
        "problem = elder.load(bundle).problem\n"
        "picture = torch.rand((1, 1, 20, 24), generator=torch.Generator().manual_seed(0))\n"
        "candidate = gate.Candidate(problem, bundle, psnr, 'a', measure(problem, ['x'], [picture]))\n"
        "experiments.connect()\n"
        "mlflow.set_experiment('elder')\n"
        "with mlflow.start_run():\n"
        "    gate.register(candidate, 0.1)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {"PYTHONPATH": str(ROOT)}
    draw, killed = np.random.default_rng(3), 0

    def register(bundle: Path, psnr: float, seconds: float | None) -> float:
        """Kill the process so many seconds after its imports. Returns those that it had."""
        nonlocal killed
        command = [sys.executable, "-c", code, str(bundle), str(psnr)]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        process.stdout.readline()
        begin = time.monotonic()
        try:
            assert process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
        process.stdout.close()
        return time.monotonic() - begin

    for name in ("first", "better"):
        replace(small_model, metadata={"label": name}).save(tmp_path / name)
    whole = register(tmp_path / "first", 30.0, None)
    for _ in range(10):
        register(tmp_path / "better", 31.0, draw.uniform(0, whole))
    register(tmp_path / "better", 31.0, None)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert killed >= 5
    found = client.search_model_versions(f"name = '{NAME}'")
    assert sorted((v.version, v.tags["psnr"]) for v in found) == [(1, "30.0000"), (2, "31.0000")]
    assert alias(client, "champion") == alias(client, "challenger") == 2
    assert gate.past_champions(client, NAME) == [1, 2]


def test_rolling_back(store, register, monkeypatch, capsys):
    for psnr in (30.0, 31.0, 32.0):
        register(psnr)

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["rollback", *arguments])
        with pytest.raises(SystemExit) as ended:
            rollback.main()
        return int(ended.value.code or 0)

    assert run("csmri") == 0
    assert "elder-csmri: version 2 is champion, in place of version 3" in capsys.readouterr().out
    assert alias(store, "champion") == 2
    tags = store.get_model_version(NAME, "2").tags
    assert tags["reason"] == "in place of version 3, by hand"
    assert "rolled_back" in store.get_model_version(NAME, "3").tags
    assert run("csmri") == 0
    assert alias(store, "champion") == 1
    assert run("csmri") == 1
    assert "there was no champion before version 1" in capsys.readouterr().err
    assert run("csmri", "--to", "3") == 0
    assert alias(store, "champion") == 3
    assert "rolled_back" not in store.get_model_version(NAME, "3").tags
    assert run("csmri") == 0  # back to what was before, however often each was champion
    assert alias(store, "champion") == 1
    assert run("csmri", "--to", "1") == 1
    assert "version 1 is the champion already" in capsys.readouterr().err
    assert run("csmri", "--to", "3") == 0
    assert run("csmri", "--to", "9") == 1
    assert run("deblur") == 1
    assert "elder-deblur: has no champion" in capsys.readouterr().err
    assert alias(store, "champion") == 3
    with pytest.raises(UserError, match="has no champion"):
        gate.roll_back(store, "elder-other")


def test_what_a_person_rolled_back_stays_down(store, register):
    """Its registration is repeated whenever the settings or the code of `register` change."""
    for psnr in (30.0, 31.0):
        register(psnr)
    assert gate.roll_back(store, NAME) == (2, 1)
    again = register(31.0)
    assert (again.version, again.promoted) == (2, False)
    assert "rolled back by hand before. To bring it back: python -m pipeline.rollback csmri --to 2" in again.reason
    assert alias(store, "champion") == 1
    assert register(31.5).promoted  # another model may pass the gate
    gate.roll_back(store, NAME, to=2)
    assert register(31.0).promoted


def test_a_version_that_was_rolled_back_is_not_pruned(store, register):
    """Its mark would go with it, and its registration would bring it back."""
    for psnr in (30.0, 31.0):
        register(psnr)
    gate.roll_back(store, NAME)
    register(30.0)  # the alias challenger moves to version 1
    experiment = store.create_experiment("elder-prune")
    found = prune.find(store, experiment, prune.Limits(30, 5, 0), time.time())
    assert [item.name for item in found if item.kind == "version"] == []


def test_a_problem_of_ones_own_is_imported_where_params_name_it(store, small_model, tmp_path, monkeypatch, rng, capsys):
    """The gate and the served model take its class from the registration, a rollback from params.yaml."""
    (tmp_path / "mine_alone.py").write_text(
        "from elder.problems import CSMRI\n\n\nclass Mine(CSMRI):\n    name = 'mine'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    problem = problems.make("mine", {"class": "mine_alone.Mine", "ratio": 0.4})
    samples = measure(problem, ["x"], [torch.rand((1, 1, 20, 24), generator=rng)])
    for psnr in (30.0, 31.0):
        bundle = tmp_path / f"bundle-{psnr}"
        replace(small_model, problem=problem, metadata={"psnr": psnr}).save(bundle)
        assert gate.register(gate.Candidate(problem, bundle, psnr, "a", samples), margin=0.1).promoted
    with pytest.raises(UserError, match=r"name it by own_code='mine_alone\.Mine'"):
        elder.load("models:/elder-mine@champion")
    assert elder.load("models:/elder-mine@champion", own_code="mine_alone.Mine").problem == problem
    monkeypatch.setattr("sys.argv", ["rollback", "mine"])
    for content, code in (("problems: {csmri: {}}", 1), ("problems: {mine: {class: mine_alone.Mine}}", 0)):
        (tmp_path / "params.yaml").write_text(content)
        with pytest.raises(SystemExit) as ended:
            rollback.main()
        assert ended.value.code == code
    assert "--own-code mine_alone.Mine" in capsys.readouterr().err
    assert int(store.get_model_version_by_alias("elder-mine", "champion").version) == 1


def test_a_served_model_gets_a_measurement_in_the_convention_of_its_problem(rng):
    """With `centered`, y has the zero frequency in the middle, as the mask does."""
    problem = problems.make("csmri", {"centered": True})
    (sample,) = measure(problem, ["x"], [torch.rand((1, 1, 20, 24), generator=rng)])
    inputs = packaging.served_inputs(problem, sample)
    y = torch.view_as_complex(torch.from_numpy(inputs.pop("measurement")))[:, None]
    operator, measured = problem.accept(y, **inputs)
    assert torch.equal(measured, sample.y)
    assert torch.equal(operator.A(sample.truth), sample.y)
