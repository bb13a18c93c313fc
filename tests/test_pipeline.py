"""The whole pipeline on tiny settings: real DVC, a real MLflow store, in a copy of the project."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from conftest import ROOT, Project

from elder import io, problems
from elder.problems import samples

CELL = "csmri-least_squares"


CELLS = ("csmri-least_squares", "csmri-implicit")


def figures(project, cell: str = CELL) -> dict:
    return json.loads((project.folder / "reports" / "cells" / cell / "metrics.json").read_text())


def runs(project) -> list[str]:
    """The runs of results; those of repros are above them."""
    out = project.python(
        "from pipeline.tracking import experiments; import mlflow; experiments.connect()\n"
        "found = mlflow.search_runs(experiment_names=['elder'], output_format='list')\n"
        "print(*[r.data.tags['cell'] for r in found if 'repro' not in r.data.tags], sep='\\n')"
    )
    return sorted(out.splitlines())


EVERY_RUN = sorted(
    ["baseline csmri", "pretrain least_squares", "pretrain implicit"]
    + [f"{stage} {cell}" for stage in ("tune", "finetune", "evaluate", "register") for cell in CELLS]
)


def test_every_output_is_there(finished):
    reports = finished.folder / "reports"
    for cell in CELLS:
        assert figures(finished, cell).keys() == {"pretrained", "finetuned"}
        with (reports / "cells" / cell / "images.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 2 * 4
        assert {row["monotone"] for row in rows} == ({"True"} if cell == CELL else {""})
    baseline = json.loads((reports / "baselines" / "csmri" / "metrics.json").read_text())
    assert baseline.keys() == {"initial", "total_variation"}
    manifest = io.read_json(finished.folder / "data" / "prepared" / "manifest.json")["images"]
    splits = {}
    for row in manifest:
        splits.setdefault(row["sha256"], set()).add(row["split"])
    assert all(len(parts) == 1 for parts in splits.values())
    assert not (finished.folder / ".checkpoints").exists() or not list((finished.folder / ".checkpoints").iterdir())


def test_the_report_stands_by_itself(finished):
    page = (finished.folder / "reports" / "index.html").read_text()
    for cell in CELLS:
        for key in ("pretrained", "finetuned"):
            assert f"{figures(finished, cell)[key]['psnr']:.2f} ± " in page
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "Explicit against implicit" in page
    assert "ratio 0.3" in page
    manifest = io.read_json(finished.folder / "data" / "prepared" / "manifest.json")["images"]
    assert all(row["sha256"][:16] in page for row in manifest)


def test_the_summary_shows_every_method_and_what_to_try_next(finished):
    printed = finished.run(sys.executable, "-m", "pipeline.report.summary").stdout
    for text in ("zero-filled", "total variation", "least squares, DEQ", "implicit, pre-trained", "reports/index.html"):
        assert text in printed
    assert f"{figures(finished)['finetuned']['psnr']:.2f} dB" in printed
    assert "models:/elder-csmri@champion" in printed


def test_the_tables_of_the_documentation_are_written_by_their_command(finished):
    def write() -> str:
        finished.run(sys.executable, "-m", "pipeline.report.results", "--out", "results.md")
        return (finished.folder / "results.md").read_text()

    (finished.folder / "results.md").write_text("# Results\n\nKept.\n")
    first = write()
    assert first.startswith("# Results\n\nKept.\n")
    assert write().count("## tiny") == first.count("## tiny") == 1
    with (finished.folder / "reports" / "cells" / CELL / "images.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "finetuned"]
    denoised, evaluations = (sum(float(r[k]) for r in rows) / len(rows) for k in ("psnr_denoised", "evaluations"))
    after = figures(finished)["finetuned"]
    line = next(line for line in first.splitlines() if line.startswith("| least squares, DEQ"))
    for text in (f"| {after['psnr']:.2f} | {after['ssim']:.4f} | {denoised:.2f} |", f"| {evaluations:.1f} |", "4 of 4"):
        assert text in line
    assert "| total variation" in first
    assert "Explicit against implicit" in first
    assert re.search(r"where solves end and at best on the way there: least squares \d+\.\d\d and \d+\.\d\d dB", first)
    assert "| first 1 pictures | after 4 steps (dB) | after 40 (dB) | change |" in first
    assert re.search(r"\| least squares \| \d+ \| \d+\.\d min \| \d+\.\d min \| \d+\.\d min \| \d+ \| \d+ \|", first)
    assert "| ratio 0.3 |" in first
    assert "Without a result yet" not in first
    # A preset that trains for hours shows what is done so far.
    metrics = finished.folder / "reports" / "cells" / "csmri-implicit" / "metrics.json"
    aside = metrics.rename(metrics.with_suffix(".aside"))
    partial = write()
    aside.rename(metrics)
    assert "Without a result yet: csmri-implicit." in partial
    assert "| least squares, DEQ" in partial
    assert "| implicit, DEQ" not in partial
    assert write() == first
    # What is left of other settings is no result of these.
    settings = finished.folder / "params.yaml"
    kept = settings.read_text()
    implicit = "csmri-implicit: {problem: csmri, regularizer: implicit"
    assert kept.count(implicit) == 1
    settings.write_text(kept.replace(implicit, f"{implicit}, finetune: {{seed: 9}}"))
    own = write().partition("## edited\n\nAn edited preset, `dvc repro`")[2]  # these settings are those of no preset
    settings.write_text(kept)
    assert "Without a result yet: csmri-implicit." in own
    assert "| least squares, DEQ" in own
    assert "| implicit, DEQ" not in own


def test_the_runs_of_a_repro_are_below_one_that_keeps_the_report(finished):
    out = finished.python(
        "from pipeline.tracking import experiments; import json, mlflow; experiments.connect()\n"
        "client = mlflow.MlflowClient()\n"
        "found = mlflow.search_runs(experiment_names=['elder'], output_format='list')\n"
        "def files(run, path=None):\n"
        "    return [f.path for f in client.list_artifacts(run.info.run_id, path)]\n"
        "(repro,) = [r for r in found if 'repro' in r.data.tags]\n"
        "(evaluate,) = [r for r in found if r.data.tags.get('cell') == 'evaluate csmri-implicit']\n"
        "print(json.dumps([repro.info.run_id, [r.data.tags['mlflow.parentRunId'] for r in found if r is not repro],\n"
        "    files(repro), files(repro, 'figures'), files(evaluate), repro.data.metrics,\n"
        "    [i.dataset.name for i in evaluate.inputs.dataset_inputs]]))"
    )
    repro, parents, top, figures_, tables, metrics, data = json.loads(out.splitlines()[-1])
    assert parents == [repro] * len(EVERY_RUN)
    assert top == ["figures", "index.html"]
    assert figures_ == [f"figures/csmri-{name}.png" for name in ("convergence", "panel", "training")]
    assert tables == ["convergence.csv", "images.csv", "long.csv", "metrics.json", "robustness.csv"]
    assert metrics == {
        f"{cell}.{method}.psnr": figures(finished, cell)[method]["psnr"]
        for cell in CELLS
        for method in ("pretrained", "finetuned")
    }
    assert data == ["prepared", "csmri"]
    shown = finished.run(sys.executable, "-m", "pipeline.runs").stdout
    for cell in CELLS:
        after = figures(finished, cell)["finetuned"]["psnr"]
        assert re.search(rf"{cell} .* {after:.2f}\n", shown)


def test_the_champion_is_found_by_name_in_another_process(finished):
    out = finished.python(
        "import elder, json\n"
        "model = elder.load('models:/elder-csmri@champion')\n"
        "from elder.problems.samples import measure\n"
        "import torch\n"
        "m = measure(model.problem, ['x'], [torch.rand(1, 1, 30, 34, generator=torch.Generator().manual_seed(0))])[0]\n"
        "found = [model, *(elder.load(f'models/{cell}') for cell in ('csmri-least_squares', 'csmri-implicit'))]\n"
        "x, *others = (each.reconstruct(m.y, mask=m.operator.mask.numpy())[0] for each in found)\n"
        "print(json.dumps([list(x.shape), bool(x.isfinite().all()), [torch.equal(x, other) for other in others]]))"
    )
    shape, finite, same = json.loads(out)
    assert shape == [1, 1, 30, 34]
    assert finite
    assert sorted(same) == [False, True]  # one of the two that were trained


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
    shown = finished.run("elder", "models").stdout.splitlines()
    (header,) = (number for number, line in enumerate(shown) if line.split()[:2] == ["name", "version"])
    assert [line for line in shown[:header] if line.startswith("released:")]  # those of the package come first
    lines = shown[header + 1 :]
    assert sorted(line.split()[:2] for line in lines) == [["elder-csmri", "1"], ["elder-csmri", "2"]]
    (champion,) = [line for line in lines if "champion" in line]
    verdicts = [io.read_json(finished.folder / "reports" / "cells" / cell / "registered.json") for cell in CELLS]
    (psnr,) = [v["psnr"] for v in verdicts if str(v["version"]) == champion.split()[1]]
    assert f"{psnr:.2f}" in champion


def test_a_change_of_code_re_runs_what_it_affects(finished, tmp_path):
    copy = Project(tmp_path / "copy")
    shutil.copytree(finished.folder, copy.folder, symlinks=True)

    def edit(path: str, old: str, new: str) -> set[str]:
        """The stages that are out of date after the change, without their cells and problems."""
        text = (copy.folder / path).read_text()
        assert old in text
        (copy.folder / path).write_text(text.replace(old, new, 1))
        copy.run("dvc", "repro", "code")
        status = json.loads(copy.run("dvc", "status", "--json").stdout)
        (copy.folder / path).write_text(text)
        return {stage.split("@")[0] for stage, changes in status.items() if "changed deps" in str(changes)}

    assert edit("elder/solvers/status.py", '"""How the solve of one image ended', '"""The end of a solve') == set()
    solving = {"tune", "finetune", "evaluate", "register"}
    assert edit("elder/solvers/anderson.py", "depth: int = 6", "depth: int = 7") == solving
    assert edit("stages/results.py", 'average["psnr"], 4)', 'average["psnr"], 3)') == {"baseline", "evaluate"}


def test_a_missing_model_of_the_registry_is_named(finished):
    done = finished.run("elder", "evaluate", "models:/elder-ct@champion", "--images", ".", "--out", "o", check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("elder: models:/elder-ct@champion: not found")


def test_models_go_to_a_remote_and_come_back(finished, tmp_path):
    model = finished.folder / "models" / CELL
    weights = (model / "weights.safetensors").read_bytes()
    finished.run("dvc", "remote", "add", "--local", "--default", "shared", str(tmp_path / "shared"))
    finished.run("dvc", "push", f"finetune@{CELL}")
    cache, aside = finished.folder / ".dvc" / "cache", tmp_path / "aside"
    shutil.move(cache, aside)
    shutil.rmtree(model)
    try:
        finished.run("dvc", "pull", f"finetune@{CELL}")
        assert (model / "weights.safetensors").read_bytes() == weights
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        shutil.move(aside, cache)


def test_an_experiment_runs_and_is_shown(finished, tmp_path):
    """`dvc exp run -S`, at once and queued, in a repository; in a copy, so that the finished one stays as it is."""
    copy = Project(tmp_path / "repository")
    shutil.copytree(finished.folder, copy.folder, symlinks=True)
    (copy.folder / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    shutil.copy(ROOT / ".gitignore", copy.folder)
    # In the repository's own configuration, where DVC looks too: a new machine has no other.
    identity = (["config", "user.name", "a"], ["config", "user.email", "a@example.org"])
    for command in (["init", "-q"], *identity, ["add", "-A"], ["commit", "-qm", "start"]):
        copy.run("git", *command)
    copy.run("dvc", "exp", "run", "-n", "wider", "-S", "register.margin=0.5", f"register@{CELL}")
    queued = ["dvc", "exp", "run", "--queue", "-n", "queued", "-S", "register.margin=0.7", f"register@{CELL}"]
    copy.run(*queued)
    assert "Queued" in copy.run("dvc", "queue", "status").stdout
    copy.run("dvc", "queue", "start")
    deadline = time.monotonic() + 180
    while "Success" not in (status := copy.run("dvc", "queue", "status").stdout) and time.monotonic() < deadline:
        time.sleep(1)
    assert "Success" in status, copy.run("dvc", "queue", "logs", "queued", check=False).stdout
    shown = copy.run("dvc", "exp", "show", "--json").stdout
    for name, margin in (("wider", 0.5), ("queued", 0.7)):
        assert f'"{name}"' in shown
        assert f'"margin": {margin}' in shown


def test_dvc_shows_metrics_plots_and_params(finished):
    shown = json.loads(finished.run("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert {f"reports/cells/{cell}/metrics.json" for cell in CELLS} <= shown.keys()
    finished.run("dvc", "plots", "show", "--out", "plots")
    page = (finished.folder / "plots" / "index.html").read_text()
    assert all(title in page for title in ("pre-training loss", "PSNR on validation", "panel"))
    # The look at the store has no input whose change would tell that another one is in use.
    assert finished.run("dvc", "status").stdout.split() == ["store:", "always", "changed"]


def ran(project: Project) -> list[str]:
    """The stages that a `dvc repro` runs."""
    out = project.run("dvc", "repro").stdout
    return [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")]


def test_validation_and_test_are_measured_with_draws_of_their_own(finished):
    settings = yaml.safe_load((finished.folder / "params.yaml").read_text())["problems"]["csmri"]
    problem, data = problems.make("csmri", settings), finished.folder / "data"
    for stream, part in enumerate(("test", "validation")):
        paths = io.list_sources(data / "prepared" / part)
        names, truths = [path.stem for path in paths], [io.to_tensor(io.read_image(path)) for path in paths]
        stored = samples.read_all(data / "measurements" / "csmri" / part, problem, names, truths)
        for found, expected in zip(stored, samples.measurements(problem, names, truths, stream=stream), strict=True):
            np.testing.assert_allclose(found.y, expected.y, rtol=1e-5, atol=1e-6)


def test_repeating_runs_nothing_but_a_look_at_the_store_and_a_setting_only_what_follows(finished):
    assert runs(finished) == EVERY_RUN
    assert ran(finished) == ["store"]
    assert runs(finished) == EVERY_RUN
    cells = {cell: {"problem": "csmri", "regularizer": cell.removeprefix("csmri-")} for cell in CELLS}
    finished.replace(cells=cells | {CELL: cells[CELL] | {"finetune": {"seed": 9}}})
    assert set(ran(finished)) == {"code", "store", "report"} | {
        f"{s}@{CELL}" for s in ("finetune", "evaluate", "register")
    }
    assert len(runs(finished)) == len(EVERY_RUN) + 3
    verdict = io.read_json(finished.folder / "reports" / "cells" / CELL / "registered.json")
    assert verdict["version"] == 3
    assert verdict["champion_psnr"] is not None
    # Going back costs nothing: the run cache has it.
    finished.replace(cells=cells)
    assert ran(finished) == ["store"]
    assert len(runs(finished)) == len(EVERY_RUN) + 3


def test_a_bundle_that_other_settings_would_train_anew_is_not_released(finished):
    """Its card would name a recipe that did not make it."""
    path, bundle = finished.folder / "params.yaml", f"models/{CELL}"
    asked = "from pathlib import Path; from pipeline import release; print(release._made_here(Path({!r})))"
    before = path.read_text()
    assert finished.run(sys.executable, "-c", asked.format(bundle)).stdout == "True\n"
    elsewhere = finished.run(sys.executable, "-c", asked.format("data/prepared/test"))
    assert (elsewhere.stdout, "no output of this project" in elsewhere.stderr) == ("False\n", True)
    finished.change("pretrain", seed=11)
    told = finished.run(sys.executable, "-c", asked.format(bundle), check=False).stderr
    assert f"models/{CELL}: the present settings, data and code would train another one" in told
    assert "pretrain@least_squares would run again" in told
    path.write_text(before)


@contextlib.contextmanager
def reproducing(project):
    """`dvc repro`, killed at the end of the block with all that it started."""
    child = subprocess.Popen(
        ["dvc", "repro"],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def killed(project, marker: str) -> bool:
    """Start `dvc repro` and kill it as soon as a file like `marker` is there."""
    with reproducing(project) as child:
        while child.poll() is None:
            if list(project.folder.glob(marker)):
                return True
            time.sleep(0.005)
    return False


@pytest.mark.slow
def test_killed_anywhere_it_ends_as_if_it_had_not_been(finished, project):
    project.only_least_squares()
    markers = (
        *(f".checkpoints/{stage}-*/state.pt" for stage in ("pretrain", "tune", "finetune")),
        f"reports/cells/{CELL}/pictures",
    )
    assert [killed(project, marker) for marker in markers] == [True] * 4
    ends_as(finished, project)


@pytest.mark.slow
def test_ten_kills_at_random(finished, project):
    project.only_least_squares()
    for seconds in np.random.default_rng(0).uniform(2, 14, 10):
        with reproducing(project) as child, contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
    ends_as(finished, project)


def ends_as(finished, project) -> None:
    """Complete what was killed; hold it to a run that was not."""
    project.run("dvc", "repro")
    assert figures(project) == figures(finished)
    for name in ("finetune.csv", "images.csv", "tune.csv"):
        path = f"reports/cells/{CELL}/{name}"
        assert (project.folder / path).read_text() == (finished.folder / path).read_text()
    mine = [run for run in EVERY_RUN if "implicit" not in run]
    assert runs(project) == mine
    assert project.run("dvc", "status").stdout.split() == ["store:", "always", "changed"]
    assert not list((project.folder / ".checkpoints").iterdir())


@pytest.mark.slow
def test_two_trainings_of_one_thing_do_not_meet(project):
    project.only_least_squares()
    project.change("pretrain", steps=100_000)
    stage = ["python", "-m", "stages.pretrain", "--regularizer", "least_squares", "--images", "data/prepared"]
    stage += ["--out", "models/a", "--metrics", "a.json", "--curve", "a.csv"]
    project.run("dvc", "repro", "prepare")
    code = (project.folder / "elder" / "tensors.py").read_text()
    options = {"cwd": project.folder, "env": project.environment, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(stage, stdout=subprocess.DEVNULL, **options)
    try:
        deadline = time.monotonic() + 120
        while not list(project.folder.glob(".checkpoints/*/state.pt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        second = project.run(*stage, check=False)
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 1
    assert "another process is training this" in second.stderr
    # A corrupt checkpoint is named, and not trained over.
    (state,) = project.folder.glob(".checkpoints/*/state.pt")
    state.write_bytes(b"no archive")
    # A changed docstring leaves a checkpoint in its place.
    (project.folder / "elder" / "tensors.py").write_text('"""Other words."""' + code.split('"""', 2)[2])
    third = project.run(*stage, check=False)
    assert third.returncode == 1
    assert "corrupt checkpoint" in third.stderr
    assert state.read_bytes() == b"no archive"
    # Changed code trains something else.
    (project.folder / "elder" / "tensors.py").write_text(code + "\nADDED = 1\n")
    fourth = subprocess.Popen(stage, stdout=subprocess.DEVNULL, **options)
    try:
        deadline = time.monotonic() + 120
        while len(list(project.folder.glob(".checkpoints/*/state.pt"))) < 2 and time.monotonic() < deadline:
            assert fourth.poll() is None
            time.sleep(0.05)
    finally:
        fourth.kill()
        fourth.wait()


def test_the_same_settings_give_the_same_figures(finished, project):
    # In a folder of another name and with nothing in its cache; DEQ training is held to this by the test above.
    project.run("dvc", "repro", f"tune@{CELL}", "baseline")
    for name in (f"reports/cells/{CELL}/tune.csv", "reports/baselines/csmri/images.csv"):
        assert (project.folder / name).read_text() == (finished.folder / name).read_text()
