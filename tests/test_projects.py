"""What users bring to the whole pipeline: settings, pictures, colors, and their own problems."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
import tifffile
import yaml
from conftest import ROOT

from elder import io


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("register", {"margin": "much"}, "register.margin='much' must be a number"),
        ("pretrain", {"patch": 900}, "smaller than patch=900"),
        ("prepare", {"source": "folder"}, "holds no picture"),
    ],
)
def test_bad_params_end_in_one_line_before_any_training(section, values, message, project):
    project.change(section, **values)
    done = project.run("dvc", "repro", "pretrain", check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project.folder / "models").exists()


def test_a_folder_of_pictures_is_split_and_used(project, photographs):
    names = []
    for index, path in enumerate(sorted(photographs.iterdir())):
        target = project.folder / "data" / "raw" / ("deep" if index % 2 else "") / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
        names.append(f"deep__{path.stem}" if index % 2 else path.stem)
    project.change("prepare", source="folder")
    project.run("dvc", "repro", "simulate")
    manifest = io.read_json(project.folder / "data" / "prepared" / "manifest.json")
    assert sorted(row["name"] for row in manifest["images"]) == sorted(names)
    assert {row["split"] for row in manifest["images"]} == {"train", "validation", "test"}


@pytest.mark.slow
def test_color_goes_through_to_the_registry(project):
    """Deblurring color pictures, from their preparation to the served champion."""
    project.only_least_squares()
    project.replace(
        cells={"deblur-least_squares": {"problem": "deblur", "regularizer": "least_squares"}},
        problems={"deblur": {"kernel": "gaussian", "noise": 0.02, "seed": 0}},
    )
    project.change("prepare", color=True)
    project.change("evaluate", robustness={"deblur": []})
    project.change("finetune", patch=32)  # the kernel is 25 pixels wide
    project.run("dvc", "repro")
    out = project.python(
        "import mlflow, numpy as np\n"
        "mlflow.set_tracking_uri('sqlite:///mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/elder-deblur@champion')\n"
        "y = np.random.default_rng(0).random((2, 3, 30, 28)).astype('float32')\n"
        "kernel = np.full((5, 5), 1 / 25, 'float32')\n"
        "x = model.predict({'measurement': y, 'kernel': kernel})\n"
        "print(x.shape, x.dtype, np.isfinite(x).all())"
    )
    assert out.strip().endswith("(2, 3, 30, 28) float32 True")
    blurred = project.folder / "blurred.png"
    io.write_image(blurred, np.random.default_rng(0).random((30, 28, 3)))
    project.run(
        "elder", "reconstruct", "models/deblur-least_squares", "--measurement", "blurred.png", "--out", "sharp.png"
    )
    assert io.read_image(project.folder / "sharp.png").shape == (30, 28, 3)


@pytest.mark.slow
def test_the_documented_problem_of_ones_own_is_trained_and_found_by_name(project):
    text = (ROOT / "docs" / "own-problem.md").read_text()
    (project.folder / "wide.py").write_text(text.split("```python\n")[1].split("```")[0])
    added = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    project.only_least_squares()
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    added["evaluate"]["robustness"] |= params["evaluate"]["robustness"]
    project.replace(own_code=added.pop("own_code"))
    for section, entries in added.items():
        project.change(section, **entries)
    project.run("dvc", "repro", "evaluate@wide-least_squares", "register@wide-least_squares")
    (project.folder / "data" / "raw" / "test").mkdir()
    for path in (project.folder / "data" / "prepared" / "test").iterdir():
        shutil.copy(path, project.folder / "data" / "raw" / "test")
    again = ("elder", "evaluate", "models:/elder-wide@champion", "--images", "data/raw/test", "--out", "again")
    refused = project.run(*again, check=False)
    assert refused.returncode == 1
    assert "name it by own_code='wide.Wide', or --own-code wide.Wide" in refused.stderr
    project.run(*again, "--own-code", "wide.Wide")
    again = io.read_json(project.folder / "again" / "metrics.json")
    assert again["problem"] == "wide"
    metrics = io.read_json(project.folder / "reports" / "cells" / "wide-least_squares" / "metrics.json")
    assert again["mean"]["psnr"] == pytest.approx(metrics["finetuned"]["psnr"], abs=0.5)
    with (project.folder / "wide.py").open("a") as file:
        file.write("\nWIDER = 3\n")
    project.run("dvc", "repro", "code")
    changed = project.run("dvc", "status", "simulate@wide", "pretrain@least_squares").stdout
    assert "simulate@wide" in changed
    assert "pretrain@least_squares" not in changed


@pytest.mark.parametrize("damage", ["corrupt", "nan", "twice"])
def test_a_bad_source_ends_in_one_line_and_writes_nothing(damage, project, photographs):
    raw = project.folder / "data" / "raw"
    pictures = sorted(photographs.iterdir())
    for path in pictures:
        (raw / path.name).write_bytes(path.read_bytes())
    if damage == "corrupt":
        (raw / "bad.png").write_bytes(b"no picture")
    elif damage == "nan":
        tifffile.imwrite(raw / "bad.tif", np.full((40, 48), np.nan, np.float32))
    else:
        for index in range(6):
            (raw / f"copy{index}.png").write_bytes(pictures[index].read_bytes())
    project.change("prepare", source="folder")
    done = project.run("dvc", "repro", "prepare", check=False)
    assert done.returncode != 0
    assert {"corrupt": "bad.png: corrupt", "nan": "holds NaN", "twice": "are one picture"}[damage] in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project.folder / "data" / "prepared").exists()


MADE_THERE = ("pretrained/least_squares", "tuned/csmri-least_squares", "csmri-least_squares")


def test_a_training_runs_where_mlflow_and_dvc_are_missing(project):
    """As on a GPU machine, with the commands that DVC would run: the results are those of DVC; nothing is logged."""
    project.only_least_squares()
    project.run("dvc", "repro", "prepare", "simulate", "code")
    stages = ("pretrain@least_squares", "tune@csmri-least_squares", "finetune@csmri-least_squares")
    commands = project.run(sys.executable, "-m", "pipeline.commands", *stages).stdout.splitlines()
    assert [command.split()[:3] for command in commands] == [
        ["python", "-m", f"stages.{name}"] for name in ("pretrain", "tune", "finetune")
    ]
    missing = ("mlflow", "dvc", "prefect", "grimp", "ruamel", "pandas", "sqlalchemy")
    code = f"import runpy, sys; sys.modules.update(dict.fromkeys({missing})); sys.argv[0] = sys.argv.pop(1)\n"
    code += "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    for command in commands:
        done = project.run(sys.executable, "-c", code, *command.split()[2:])
        assert "MLflow is not installed here, so nothing is logged" in done.stderr
    assert not (project.folder / "mlflow.db").exists()
    files = [project.folder / "models" / name / "weights.safetensors" for name in MADE_THERE]
    weights = [file.read_bytes() for file in files]
    project.run("dvc", "commit", "--force", *stages)
    assert "up to date" in project.run("dvc", "status", *stages).stdout
    project.run("dvc", "repro", "--force", "--single-item", "pretrain@least_squares")
    assert [file.read_bytes() for file in files] == weights


def test_a_stage_that_is_not_there_has_no_command(project):
    done = project.run(sys.executable, "-m", "pipeline.commands", "pretrain@nothing", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("commands: pretrain@nothing: no stage of dvc.yaml")
