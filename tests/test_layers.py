"""Who imports whom: the library knows no orchestrator, and each stage is re-run when its code changes."""

from __future__ import annotations

import ast
import runpy
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, copy_project, stage
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo

from pipeline.settings import params
from pipeline.tracking import fingerprints
from stages import code, command

PLAIN = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in PLAIN.items()}
# What the library may import beyond the standard library; the second row inside functions only.
LIBRARY = {"elder", "torch", "numpy", "skimage", "safetensors", "jaxtyping"}
OPTIONAL = {"scipy", "h5py", "tifffile", "PIL", "mlflow", "nibabel", "pydicom"}


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and node.module else set()


@pytest.mark.parametrize("path", sorted((ROOT / "elder").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_imports_no_orchestrator(path: Path):
    tree = ast.parse(path.read_text())
    top = set().union(*(imported(node) for node in tree.body))
    everywhere = set().union(*(imported(node) for node in ast.walk(tree)))
    standard = set(sys.stdlib_module_names)
    assert top - standard <= LIBRARY
    assert everywhere - standard <= LIBRARY | OPTIONAL
    if path.name != "registry.py":
        assert "mlflow" not in everywhere


def test_the_layer_law_catches_an_orchestrator():
    assert imported(ast.parse("from prefect.flows import flow").body[0]) == {"prefect"}
    assert imported(ast.parse("import dvc.api").body[0]) == {"dvc"}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The modules behind each stage, with their fingerprints."""
    folder = tmp_path_factory.mktemp("code")
    code.main(Namespace(out=folder / "code"))
    # Of a stage that there is for each cell, the modules behind all of them are the same.
    paths = {path.relative_to(folder / "code").parts[0].removesuffix(".txt"): path for path in folder.rglob("*.txt")}
    lines = {stage: path.read_text().splitlines() for stage, path in paths.items()}
    return {stage: {row.split()[1]: row.split()[0] for row in rows} for stage, rows in lines.items()}


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A stage of each name, as DVC reads dvc.yaml."""
    project = copy_project(tmp_path_factory.mktemp("resolved") / "project")
    return {stage.name.split("@")[0]: stage for stage in Repo(str(project.folder)).index.stages}


# prepare reads a folder that is a setting: as an argument, its name would have to survive the shell.
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("code", "prepare", "store")])
def test_a_stage_reads_and_writes_what_dvc_is_told(stage: str, resolved, monkeypatch):
    declared = {}
    monkeypatch.setattr(command, "run", lambda main, **names: declared.update(names))
    runpy.run_module(f"stages.{stage}", run_name="__main__")
    words = shlex.split(resolved[stage].cmd)
    given = {name.removeprefix("--"): value for name, value in zip(words[3::2], words[4::2], strict=True)}
    deps = {dep.def_path for dep in resolved[stage].deps if not isinstance(dep, ParamsDependency)}
    assert {given[name] for name in ("code", *declared["reads"])} == deps
    written = [Path(given[name]) for name in declared["writes"]]
    outs = [Path(out.def_path) for out in resolved[stage].outs]
    assert all(any(out.is_relative_to(path) for path in written) for out in outs)
    assert all(any(out.is_relative_to(path) for out in outs) for path in written)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("code", "store")])
def test_dvc_watches_the_code_of_each_stage(stage: str, watched):
    section = next((section for section, names in params.STAGES.items() if stage in names), "")
    assert PLAIN[stage].get("foreach", "${}") == f"${{{section}}}"
    assert f"reports/code/{stage}{'/${key}' * bool(section)}.txt" in STAGES[stage]["deps"]
    assert f"stages.{stage}" in watched[stage]


def test_a_change_re_runs_the_stages_that_it_affects(watched):
    def behind(module: str) -> set[str]:
        return {stage for stage, modules in watched.items() if module in modules}

    solving = {"tune", "finetune", "evaluate", "register"}
    assert behind("elder.solvers.loop") == solving
    assert behind("elder.implicit") == {"finetune"}
    assert behind("elder.solvers.primal_dual") == {"baseline"}
    assert {"simulate", "baseline", *solving} <= behind("elder.operators.blur")
    assert not {"pretrain"} & (
        behind("elder.operators.blur") | behind("elder.operators.base") | behind("elder.fidelity.base")
    )
    assert behind("stages.results") == {"baseline", "evaluate"}
    assert behind("pipeline.registry.served_model") == {"register"}
    assert behind("pipeline.settings.merging") == {"pretrain", "finetune"}
    assert behind("pipeline.report.tables") == {"report"}
    assert behind("pipeline.report/page.html") == {"report"}
    assert behind("pipeline.tracking.logs") == behind("stages.tracked") == behind("elder.command") == set()
    assert not behind("pipeline.tracking.fingerprints") & {"pretrain", "tune", "finetune", "evaluate"}


UNUSED = {
    "problems": {"denoise": {"noise": 0.1}},
    "regularizers": {"red": {}},
    "evaluate": {"robustness": {"csmri": [], "denoise": []}},
}


@pytest.mark.parametrize(("name", "key"), [("simulate", "denoise"), ("baseline", "denoise"), ("pretrain", "red")])
def test_what_no_cell_uses_is_not_computed_and_needs_no_code(name: str, key: str, tmp_path, monkeypatch, capsys):
    assert stage(monkeypatch, tmp_path, UNUSED, "code", "--out", "code") == 0
    files = {path.stem: path.read_text() for path in (tmp_path / "code" / name).iterdir()}
    assert [used for used, text in files.items() if not text] == [key]
    words = STAGES[name]["cmd"].replace("${key}", key).split()[3:]
    assert stage(monkeypatch, tmp_path, UNUSED, name, *words) == 0
    assert f"no cell uses {key}" in capsys.readouterr().out
    plots = [path for plot in STAGES[name].get("plots", []) for path in plot]
    for out in [*STAGES[name]["outs"], *STAGES[name].get("metrics", []), *plots]:
        assert (tmp_path / out.replace("${key}", key)).exists()
    written = [path for path in (tmp_path / "models", tmp_path / "data") if path.exists()]
    assert not [file for folder in written for file in folder.rglob("*") if file.is_file()]


def test_a_fingerprint_is_of_the_code_alone():
    source = 'def f(x):\n    """Twice x."""\n    return 2 * x\n'
    same = "def f(x):  # double\n    return (2 *\n            x)\n"
    assert fingerprints.digest(source) == fingerprints.digest(same)
    assert fingerprints.digest(source) != fingerprints.digest(source.replace("2 * x", "3 * x"))


def test_an_mlflow_run_belongs_to_inputs_and_code(tmp_path):
    image, manifest = tmp_path / "image", tmp_path / "tune.txt"
    image.write_text("1")
    manifest.write_text("a")

    def now(path: Path = image) -> str:
        return fingerprints.Reads("tune", (path,), manifest).fingerprint

    first = now()
    image.write_text("2")
    second = now()
    manifest.write_text("b")
    assert len({first, second, now()}) == 3
    elsewhere = image.rename(tmp_path / "elsewhere")
    manifest.write_text("a")
    assert now(elsewhere) == second


def test_a_stage_that_is_run_by_hand_finds_its_code_out(tmp_path, watched):
    manifest = tmp_path / "tune.txt"
    manifest.write_text("".join(f"{code}  {name}\n" for name, code in watched["tune"].items()))
    stage = f"tune/{next(iter(params.read().cells))}"
    by_dvc, by_hand = (fingerprints.Reads(stage, (), path).fingerprint for path in (manifest, None))
    assert by_hand == by_dvc


def test_importing_the_library_loads_no_heavy_extra():
    code = (
        "import sys, elder; elder.load; print(*[n for n in ('mlflow', 'prefect', 'dvc', 'h5py') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not out.strip()
