"""Who imports whom: the library knows no orchestrator, and each stage is re-run when its code changes."""

from __future__ import annotations

import ast
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from pipeline import preset
from stages import code

PLAIN = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in PLAIN.items()}
# What the library may import beyond the standard library; the second row inside functions only.
LIBRARY = {"elder", "torch", "numpy", "skimage", "safetensors", "jaxtyping"}
OPTIONAL = {"scipy", "h5py", "tifffile", "mlflow", "nibabel", "pydicom"}


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
    lines = {path.stem: path.read_text().splitlines() for path in (folder / "code").iterdir()}
    return {stage: {row.split()[1]: row.split()[0] for row in rows} for stage, rows in lines.items()}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "code"])
def test_dvc_watches_the_code_of_each_stage(stage: str, watched):
    assert f"reports/code/{stage}.txt" in STAGES[stage]["deps"]
    assert f"stages.{stage}" in watched[stage]


def test_a_change_re_runs_the_stages_that_it_affects(watched):
    def behind(module: str) -> set[str]:
        return {stage for stage, modules in watched.items() if module in modules}

    solving = {"tune", "finetune", "evaluate", "register"}
    assert behind("elder.solvers.loop") == solving
    assert behind("elder.implicit") == {"finetune"}
    assert behind("elder.solvers.primal_dual") == {"baseline", "evaluate", "register"}
    assert {"simulate", "baseline", *solving} <= behind("elder.operators.blur")
    assert "pretrain" not in behind("elder.operators.blur")
    assert behind("stages.results") == {"baseline", "evaluate"}
    assert behind("pipeline.report.tables") == {"report"}
    assert behind("pipeline.report/page.html") == {"report"}
    assert behind("pipeline.tracking") == set()


def test_a_fingerprint_is_of_the_code_alone():
    source = 'def f(x):\n    """Twice x."""\n    return 2 * x\n'
    same = "def f(x):  # double\n    return (2 *\n            x)\n"
    assert code.digest(source) == code.digest(same)
    assert code.digest(source) != code.digest(source.replace("2 * x", "3 * x"))


def test_every_setting_is_watched_by_a_stage():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    watched = {
        name.split(".")[0] for name, stage in STAGES.items() if name != "report" for name in stage.get("params", [])
    }
    # `compute` changes the time of a result, not the result.
    assert params.keys() - {"compute"} == watched


def test_the_presets_fit_the_default(tmp_path):
    assert (ROOT / "presets" / "default.yaml").read_text() == (ROOT / "params.yaml").read_text()
    for name in preset.names():
        preset.apply(name, tmp_path / "params.yaml")
        merged = yaml.safe_load((tmp_path / "params.yaml").read_text())
        over = yaml.safe_load((ROOT / "presets" / f"{name}.yaml").read_text())
        for section, values in over.items():
            assert values.items() <= merged[section].items()


def test_a_preset_of_another_name_is_named(project):
    done = project.run(sys.executable, "-m", "pipeline.preset", "huge", check=False)
    assert done.returncode == 1
    assert "unknown preset 'huge': there are brain, color, default, mri, tiny" in done.stderr
    project.run(sys.executable, "-m", "pipeline.preset", "default")
    before = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert yaml.safe_load((project.folder / "params.yaml").read_text()) == before


def test_importing_the_library_loads_no_heavy_extra():
    code = (
        "import sys, elder; elder.load; print(*[n for n in ('mlflow', 'prefect', 'dvc', 'h5py') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not out.strip()
