"""The whole pipeline on tiny settings: real DVC, a real MLflow store, in a copy of the project."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import tifffile
import yaml

from elder import files

CELL = "csmri-least_squares"


def figures(project) -> dict:
    return json.loads((project.folder / "reports" / CELL / "metrics.json").read_text())


def runs(project) -> list[str]:
    out = project.python(
        "from pipeline import tracking; import mlflow; tracking.connect()\n"
        "print(*[r.data.tags['stage'] for r in mlflow.search_runs("
        "experiment_names=['elder'], output_format='list')], sep='\\n')"
    )
    return sorted(out.split())


def test_every_output_is_there(finished):
    reports = finished.folder / "reports" / CELL
    assert figures(finished).keys() == {"initial", "total_variation", "pretrained", "finetuned"}
    assert (reports / "panel.png").stat().st_size > 10_000
    assert (reports / "convergence.png").exists()
    with (reports / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 4
    assert all(row["monotone"] == "True" for row in rows if row["method"] in ("pretrained", "finetuned"))
    manifest = files.read_json(finished.folder / "data" / "prepared" / "manifest.json")["images"]
    splits = {}
    for row in manifest:
        splits.setdefault(row["sha256"], set()).add(row["split"])
    assert all(len(parts) == 1 for parts in splits.values())


def test_the_champion_is_found_by_name_in_another_process(finished):
    out = finished.python(
        "import elder, json\n"
        "model = elder.load('models:/elder-csmri@champion')\n"
        "from elder.measurements import measure\n"
        "import torch\n"
        "m = measure(model.problem, ['x'], [torch.rand(1, 1, 30, 34, generator=torch.Generator().manual_seed(0))])[0]\n"
        "x, info = model.reconstruct(m.y, mask=m.operator.mask.numpy())\n"
        "print(json.dumps([list(x.shape), bool(x.isfinite().all()), info.status]))"
    )
    shape, finite, status = json.loads(out)
    assert shape == [1, 1, 30, 34]
    assert finite
    assert status[0] in ("converged", "precision", "max_steps")


def test_the_champion_is_served_without_pickle(finished):
    out = finished.python(
        "import os; os.environ['MLFLOW_ALLOW_PICKLE_DESERIALIZATION'] = 'false'\n"
        "import mlflow, numpy as np\n"
        "mlflow.set_tracking_uri('sqlite:///mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/elder-csmri@champion')\n"
        "y = np.random.default_rng(0).random((2, 24, 20, 2)).astype('float32')\n"
        "mask = np.ones((24, 20), 'uint8'); mask[3] = 0\n"
        "x = model.predict({'measurement': y, 'mask': mask})\n"
        "print(x.shape, x.dtype, np.isfinite(x).all())"
    )
    assert out.strip().endswith("(2, 24, 20) float32 True")
    store = finished.folder / "mlruns"
    assert not [p for p in store.rglob("*") if p.suffix in (".pkl", ".pickle", ".pt", ".pth")]


def test_the_command_lists_the_registry(finished):
    lines = finished.run("elder", "models").stdout.splitlines()
    assert lines[1].split()[:2] == ["elder-csmri", "1"]
    assert "challenger, champion" in lines[1]
    assert f"{figures(finished)['finetuned']['psnr']:.2f}" in lines[1]


def test_a_missing_model_of_the_registry_is_named(finished):
    done = finished.run("elder", "evaluate", "models:/elder-ct@champion", "--images", ".", "--out", "o", check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("elder: models:/elder-ct@champion: not found")


def test_dvc_shows_metrics_plots_and_params(finished):
    shown = json.loads(finished.run("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert f"reports/{CELL}/metrics.json" in shown
    finished.run("dvc", "plots", "show", "--out", "plots")
    page = (finished.folder / "plots" / "index.html").read_text()
    assert all(title in page for title in ("pre-training loss", "PSNR on validation", "panel"))
    assert "up to date" in finished.run("dvc", "status").stdout


def test_repeating_runs_nothing_and_a_setting_only_what_follows(finished):
    before = runs(finished)
    assert before == ["evaluate", "finetune", "pretrain", "register", "tune"]
    assert "Running stage" not in finished.run("dvc", "repro").stdout
    assert runs(finished) == before
    finished.change("finetune", seed=9)
    out = finished.run("dvc", "repro").stdout
    ran = [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")]
    assert ran == [f"{stage}@{CELL}" for stage in ("finetune", "evaluate", "register")]
    assert len(runs(finished)) == len(before) + 3
    verdict = files.read_json(finished.folder / "reports" / CELL / "registered.json")
    assert verdict["version"] == 2
    assert verdict["champion_psnr"] is not None
    # Going back costs nothing: the run cache has it.
    finished.change("finetune", seed=3)
    assert "Running stage" not in finished.run("dvc", "repro").stdout
    assert len(runs(finished)) == len(before) + 3


def test_the_same_settings_give_the_same_figures(finished, project):
    project.run("dvc", "repro", f"evaluate@{CELL}")
    assert figures(project)["pretrained"] == figures(finished)["pretrained"]
    assert figures(project)["total_variation"] == figures(finished)["total_variation"]


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("pretrain", {"stepz": 3}, "unknown setting pretrain.stepz"),
        ("pretrain", {"steps": "many"}, "pretrain.steps='many' must be a whole number"),
        ("pretrain", {"patch": 900}, "smaller than patch=900"),
        ("prepare", {"source": "web"}, "prepare.source='web'"),
        ("prepare", {"source": "folder"}, "holds no picture"),
        ("simulate", {"csmri": {"ratio": 0.3, "angle": 4}}, "unknown setting 'angle'"),
        ("network", {"widht": 4}, "network dncnn"),
        ("register", {"margin": "much"}, "register.margin='much' must be a number"),
    ],
)
def test_bad_params_end_in_one_line(section, values, message, project):
    project.change(section, **values)
    done = project.run("dvc", "repro", "pretrain", "simulate", check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    # Whichever stage comes first, it trains nothing and writes nothing of its own.
    assert not (project.folder / "models").exists()


def test_a_folder_of_pictures_is_split_and_used(project, photographs):
    for index, path in enumerate(sorted(photographs.iterdir())):
        target = project.folder / "data" / "raw" / ("deep" if index % 2 else "") / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    project.change("prepare", source="folder")
    project.run("dvc", "repro", "simulate")
    manifest = files.read_json(project.folder / "data" / "prepared" / "manifest.json")
    assert sorted(row["name"] for row in manifest["images"]) == sorted(p.stem for p in photographs.iterdir())
    assert {row["split"] for row in manifest["images"]} == {"train", "validation", "test"}


def test_colour_goes_through_to_the_registry(project):
    """Deblurring colour pictures, from their preparation to the served champion."""
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    params["problems"] = ["deblur"]
    params["simulate"] = {"deblur": {"kernel": "gaussian", "noise": 0.02, "seed": 0}}
    params["prepare"]["color"] = True
    (project.folder / "params.yaml").write_text(yaml.safe_dump(params))
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
    files.write_image(blurred, np.random.default_rng(0).random((30, 28, 3)))
    project.run(
        "elder", "reconstruct", "models/deblur-least_squares", "--measurement", "blurred.png", "--out", "sharp.png"
    )
    assert files.read_image(project.folder / "sharp.png").shape == (30, 28, 3)


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
