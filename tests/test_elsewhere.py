"""Environments that have never seen this project: the library alone, and a registered version with what it asks for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, forget_store

from elder import io, problems, regularizers
from elder.evaluation.quality import psnr
from elder.model.model import Hyperparameters, Model
from elder.problems.samples import measure

pytestmark = pytest.mark.slow

PREDICT = """
import sys
from pathlib import Path

import mlflow
import numpy as np

URI = "models:/elder-csmri@champion"
served = mlflow.pyfunc.load_model(URI)
import elder  # from the version: it is installed nowhere here

assert "code" in Path(elder.__file__).parts, elder.__file__
model = elder.load(URI)
for path in map(Path, sys.argv[1:]):
    with np.load(path) as arrays:
        y, mask = arrays["y"], arrays["mask"]
    x, info = model.reconstruct(y, mask=mask)
    np.savez(path.name, served=served.predict({"measurement": y, "mask": mask}), loaded=x, status=info.status)
"""


@dataclass(frozen=True)
class Elsewhere:
    """A virtual environment in a folder that has nothing to do with the project."""

    folder: Path

    def install(self, *what: str) -> None:
        """By pip, which must reach a package index."""
        subprocess.run([sys.executable, "-m", "venv", self.folder / "venv"], check=True)
        pip = [self.folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet"]
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([*pip, *what], env=clean, cwd=self.folder, check=True)

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of the environment, in its folder; it inherits nothing of ours."""
        tools = self.folder / "venv" / "bin"
        found = {"PATH": f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin", "HOME": str(self.folder), **environment}
        return subprocess.run(
            [tools / command[0], *command[1:]], cwd=self.folder, env=found, capture_output=True, text=True, check=False
        )


@pytest.fixture
def elsewhere(tmp_path) -> Elsewhere:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return Elsewhere(folder)


@dataclass(frozen=True)
class Here:
    """A folder with a store and a champion in it, and the project's own environment."""

    folder: Path

    @property
    def store(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def run(self, *command: str | Path) -> None:
        """The command `elder` of this code."""
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "MLFLOW_TRACKING_URI": self.store, "PYTHONPATH": paths}
        program = [sys.executable, "-c", "import sys; from elder.cli import main; sys.exit(main(sys.argv[1:]))"]
        subprocess.run([*program, *command], cwd=self.folder, env=environment, check=True)


@pytest.fixture
def here(tmp_path, monkeypatch, photographs) -> Iterator[Here]:
    """The champion is a convex energy: its solves end where they should, trained or not."""
    import mlflow

    from pipeline.registry import gate

    found = Here(tmp_path / "here")
    found.folder.mkdir()
    monkeypatch.chdir(found.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found.store)
    mlflow.set_tracking_uri(found.store)
    torch.manual_seed(0)
    regularizer = regularizers.make("convex_ridge").eval().requires_grad_(False)
    problem = problems.make("csmri", {"ratio": 0.4})
    model = Model(problem, regularizer, Hyperparameters(0.01, 0.05, 50.0), {"name": "convex_ridge"})
    model.save(found.folder / "bundle")
    truth = io.to_tensor(io.read_image(photographs / "camera.png"))
    samples = measure(problem, ["camera"], [truth])
    gate.register(gate.Candidate(problem, found.folder / "bundle", 20.0, "a", samples), margin=0.1)
    yield found
    forget_store()


def test_a_version_brings_all_that_it_needs(here, elsewhere, photographs):
    """The picture behind a measurement is as good there as `elder evaluate` says here."""
    import mlflow

    pictures = ("--images", photographs)
    here.run("evaluate", "models:/elder-csmri@champion", *pictures, "--out", "report")
    here.run("simulate", "csmri", *pictures, "--out", "measured", "--set", "ratio=0.4")
    requirements = mlflow.pyfunc.get_model_dependencies("models:/elder-csmri@champion")
    elsewhere.install("-r", requirements)
    (elsewhere.folder / "predict.py").write_text(PREDICT)
    rows = io.read_json(here.folder / "report" / "metrics.json")["images"]
    files = [here.folder / "measured" / f"{row['name']}.npz" for row in rows]
    done = elsewhere.run("python", "predict.py", *files, MLFLOW_TRACKING_URI=here.store)
    assert done.returncode == 0, done.stderr
    assert len(rows) == 6
    for row in rows:
        truth = io.to_tensor(io.read_image(photographs / f"{row['name']}.png"))
        with np.load(elsewhere.folder / f"{row['name']}.npz") as found:
            assert str(found["status"]) == row["status"]
            for name in ("served", "loaded"):
                assert float(psnr(io.to_tensor(found[name]), truth)) == pytest.approx(row["psnr"], abs=0.01)


def test_the_bare_library_reconstructs_and_names_what_the_registry_needs(elsewhere, bundle, photographs):
    source = elsewhere.folder / "source"
    shutil.copytree(ROOT / "elder", source / "elder", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    elsewhere.install(str(source))
    shutil.rmtree(source)
    listed = elsewhere.run("python", "-m", "pip", "list").stdout.lower()
    assert not {name for name in ("mlflow", "dvc", "prefect", "pydantic") if name in listed}
    ratio = ("--set", "ratio=0.4")
    simulated = elsewhere.run("elder", "simulate", "csmri", "--images", photographs, "--out", "measured", *ratio)
    assert simulated.returncode == 0, simulated.stderr
    measurement = ("--measurement", "measured/camera.npz")
    done = elsewhere.run("elder", "reconstruct", bundle, *measurement, "--out", "camera.npy")
    assert done.returncode == 0, done.stderr
    assert np.load(elsewhere.folder / "camera.npy").shape == (40, 48)
    champion = "models:/elder-csmri@champion"
    refused = elsewhere.run("elder", "reconstruct", champion, *measurement, "--out", "x.npy")
    assert refused.returncode == 1
    assert refused.stderr == "elder: the model registry needs MLflow: pip install mlflow\n"
    listed = elsewhere.run("elder", "models")
    assert listed.returncode == 0, listed.stderr
    assert "released:denoise-least_squares" in listed.stdout
    assert listed.stdout.endswith("models of a registry are listed where MLflow is installed: pip install mlflow\n")
