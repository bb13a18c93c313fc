"""Fixtures: a seeded generator, small pictures, a small trained model, and a copy of the project to run stages in."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import skimage
import torch
import yaml
from skimage.transform import resize

ROOT = Path(__file__).resolve().parent.parent
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: one thread each, in the stages that they start too.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
sys.path.insert(0, str(ROOT))
try:
    import checked
except ImportError:  # a machine with the library's own packages alone, such as one with a GPU
    checked = None
else:
    checked.install()

from elder import io, problems, regularizers  # noqa: E402
from elder.model.model import Hyperparameters, Model  # noqa: E402


def pytest_report_header() -> str:
    """Whether this run checks types and shapes."""
    return "types and shapes: " + ("checked" if checked else "NOT checked, since beartype is missing")


def forget_store() -> None:
    """Have MLflow look for its store again. None does so, which its type hint leaves out."""
    import mlflow

    mlflow.set_tracking_uri(cast("str", None))


@pytest.fixture(autouse=True)
def _check_the_first_calls() -> None:
    """Of every function, in each test; see `checked`."""
    if checked:
        checked.restart()


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(11)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six real photographs, gray, 40x48."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("camera", "coins", "moon", "brick", "page", "text"):
        picture = io.read_image(Path(skimage.__file__).parent / "data" / f"{name}.png")
        io.write_image(folder / f"{name}.png", np.asarray(resize(picture, (40, 48), anti_aliasing=True)))
    return folder


@pytest.fixture(scope="session")
def small_model() -> Model:
    """A model of CS-MRI with an untrained network: enough to reconstruct with, and to fail with."""
    torch.manual_seed(0)
    description = {"name": "least_squares", "network": {"name": "dncnn", "channels": 1, "width": 6, "depth": 3}}
    regularizer = regularizers.make(**description).eval().requires_grad_(False)
    return Model(problems.make("csmri", {"ratio": 0.4}), regularizer, Hyperparameters(0.1, 0.1, 5.0), description)


@pytest.fixture(scope="session")
def bundle(small_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    small_model.save(folder)
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store to copy. Made once: MLflow's migrations take seconds."""
    from mlflow import MlflowClient  # needs more than the library does

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_registered_models()
    return path


@dataclass(frozen=True)
class Project:
    """A copy of the project in its own folder, with its own DVC, MLflow and Prefect state."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_", "DVC_"))}
        tools = str(Path(sys.executable).parent)
        return {**clean, "PATH": os.pathsep.join([tools, clean["PATH"]]), "PYTHONPATH": str(self.folder)}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def python(self, code: str) -> str:
        return self.run(sys.executable, "-c", code).stdout

    def replace(self, **sections) -> None:
        """Put whole sections of params.yaml in the place of what is there."""
        path = self.folder / "params.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | sections))

    def only_least_squares(self) -> None:
        """Leave the implicit counterpart out."""
        self.replace(
            cells={"csmri-least_squares": {"problem": "csmri", "regularizer": "least_squares"}},
            regularizers={"least_squares": {}},
        )

    def change(self, section: str, **values) -> None:
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text())
        params[section] |= values
        path.write_text(yaml.safe_dump(params))


def copy_project(folder: Path) -> Project:
    from pipeline import preset  # needs more than the library does

    for name in ("elder", "stages", "pipeline", "presets", "data/raw"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    preset.apply("tiny", folder)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
    return Project(folder)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return copy_project(tmp_path / "project")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy in which `dvc repro` has run from end to end on the tiny settings."""
    made = copy_project(tmp_path_factory.mktemp("finished") / "project")
    made.run("dvc", "repro")
    return made


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.npy"
    np.save(path, (np.random.default_rng(0).random((40, 48)) < 0.5).astype(np.uint8))
    return path


def stage(monkeypatch, folder: Path, change: dict, name: str, *arguments: str) -> int:
    """Run a stage in this process on the tiny settings with a change. Returns its exit code."""
    from pipeline import preset  # needs more than the library does
    from pipeline.settings import params

    path = folder / "params.yaml"
    tiny = (ROOT / "presets" / "tiny.yaml").read_text()
    settings = yaml.safe_load(preset.overlaid((ROOT / "params.yaml").read_text(), tiny, "tiny"))
    settings["own_code"] = str(ROOT / "elder" / "problems")
    for section, values in change.items():
        settings[section] = settings.get(section, {}) | values
    path.write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    params.read.cache_clear()
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"stages.{name}", run_name="__main__")
    params.read.cache_clear()
    return int(ended.value.code or 0)


def answers(url: str) -> bool:
    """Whether a server answers there."""
    try:
        urllib.request.urlopen(url, timeout=2).close()  # noqa: S310  loopback
    except OSError:
        return False
    return True
