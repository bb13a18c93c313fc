"""Settings: bad ones are named, each affects DVC's keys and what runs again, and presets are whole files."""

from __future__ import annotations

import inspect
import shutil
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, copy_project
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from dvc.stage.cache import _get_cache_hash

from elder import UserError, io
from elder.backend import Compute
from elder.errors import DataWarning
from elder.networks import NETWORKS
from elder.problems import PROBLEMS
from elder.problems.denoise import Denoise
from elder.regularizers import OF_FILTERS, OVER_A_NETWORK
from elder.training.finetune import finetune
from elder.training.pretrain import Pretraining, pretrain
from elder.training.settings import Finetuning
from pipeline import preset
from pipeline.settings import params
from pipeline.tracking import fingerprints

DEFAULT = yaml.safe_load((ROOT / "params.yaml").read_text())
RECORDS = (
    Compute,
    Finetuning,
    Pretraining,
    params.Cell,
    params.Evaluation,
    params.Parameterization,
    params.Preparation,
    params.Registration,
    params.Safeguards,
    params.Search,
)
PARTS = {**PROBLEMS, **NETWORKS, **OF_FILTERS, **OVER_A_NETWORK}
PRESETS = preset.names(ROOT)


def written(name: str) -> str:
    """The params.yaml of a preset."""
    defaults = (ROOT / "params.yaml").read_text()
    if name == "default":
        return defaults
    return preset.overlaid(defaults, (ROOT / "presets" / f"{name}.yaml").read_text(), name)


@pytest.fixture
def check(tmp_path) -> Callable[..., params.Params]:
    """Check the tiny params.yaml with some settings changed."""

    def checked(**sections: dict[str, Any]) -> params.Params:
        whole = yaml.safe_load(written("tiny"))
        for section, changes in sections.items():
            whole[section] = whole.get(section, {}) | changes
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(whole))
        return params.load(tmp_path / "params.yaml")

    return checked


@pytest.fixture(scope="module")
def watchers(tmp_path_factory) -> dict[str, set[str]]:
    """The settings that each stage of the default watches, as DVC reads dvc.yaml."""
    project = copy_project(tmp_path_factory.mktemp("default") / "project")
    project.replace(**DEFAULT)
    return {
        stage.name: {name for dep in stage.deps if isinstance(dep, ParamsDependency) for name in dep.params}
        for stage in Repo(str(project.folder)).index.stages
    }


def affected(watchers: dict[str, set[str]], setting: str) -> set[str]:
    """The stages that run again for a change of a setting.

    But for the report, which shows every setting, and `code`, which finds out again what the settings name.
    """
    return {
        stage
        for stage, names in watchers.items()
        if stage not in ("report", "code") and any(f"{setting}.".startswith(f"{name}.") for name in names)
    }


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_long_solves_are_ten_times_those_of_training(path):
    if path.stem == "tiny":  # which shows nothing of models
        return
    chosen = yaml.safe_load(written(path.stem))
    assert chosen["evaluate"]["long_steps"] == 10 * chosen["finetune"]["max_steps"]


def test_every_setting_is_watched_by_a_stage(watchers):
    for path in leaves(DEFAULT):
        setting = ".".join(str(name) for name in path if isinstance(name, str))
        # Sections of what changes no result, a path that is itself a dependency, and what `code` turns into manifests.
        others = ("compute", "safeguards", "own_code", "network")
        assert bool(affected(watchers, setting)) == (path[0] not in others), setting


def test_the_network_re_runs_the_pre_training_of_those_that_have_one(check):
    def of(**network: Any) -> dict[str, str]:
        settings = {"name": "dncnn", "width": 4, "depth": 3}
        chosen = check(network=settings | network, regularizers={"least_squares": {}, "convex_ridge": {}})
        return fingerprints.manifests(chosen)

    before, after = of(), of(width=5)
    assert {stage for stage in before if before[stage] != after[stage]} == {
        "pretrain/implicit",
        "pretrain/least_squares",
    }


def test_a_setting_re_runs_the_stages_that_use_it(watchers):
    cells = DEFAULT["cells"]
    evaluations = {f"evaluate@{cell}" for cell in cells}
    for name in ("curve_steps", "long_steps", "long_images"):
        assert affected(watchers, f"evaluate.{name}") == evaluations
    assert affected(watchers, "evaluate.tv_weights") == {f"baseline@{name}" for name in DEFAULT["problems"]}
    of_superres = {f"evaluate@{cell}" for cell in cells if cells[cell]["problem"] == "superres"}
    assert affected(watchers, "evaluate.robustness.superres") == {"baseline@superres", *of_superres}
    assert affected(watchers, "cells.inpaint-red.finetune.steps") == {"finetune@inpaint-red"}
    assert affected(watchers, "regularizers.red.pretrain.steps") == {"pretrain@red"}


def key(whole: dict[str, Any]) -> str:
    """The key under which DVC's run cache keeps the result of a stage with these settings."""
    lock = {"cmd": "python", "params": {"params.yaml": whole}, "deps": [], "outs": [{"path": "out"}]}
    return _get_cache_hash(lock, key=True)


def leaves(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every setting below `node`."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in pairs:
        yield from leaves(value, (*path, name))
    if not pairs:
        yield path


def changed(node: Any, path: tuple) -> Any:
    """A copy with another value at `path`."""
    if not path:
        return "another"
    copy = node.copy()
    copy[path[0]] = changed(node[path[0]], path[1:])
    return copy


@pytest.mark.parametrize("name", PRESETS)
def test_two_values_of_a_setting_give_two_keys(name):
    whole = yaml.safe_load(written(name))
    paths = list(leaves(whole))
    assert ("prepare", "shorter_side") in paths
    assert len({key(whole), *(key(changed(whole, path)) for path in paths)}) == len(paths) + 1


def test_dvc_ignores_the_names_that_the_check_refuses():
    for name in params.IGNORED_BY_DVC:
        assert key({"prepare": {name: 40}}) == key({"prepare": {name: 96}})


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_no_record_of_settings_has_a_name_that_dvc_ignores(record):
    assert not inspect.signature(record).parameters.keys() & set(params.IGNORED_BY_DVC)


@pytest.mark.parametrize("name", PARTS)
def test_no_problem_regularizer_or_network_has_a_name_that_dvc_ignores(name):
    assert not inspect.signature(PARTS[name]).parameters.keys() & set(params.IGNORED_BY_DVC)


IMPLICIT = {"problem": "csmri", "regularizer": "implicit"}


class Elsewhere(Denoise):
    """A problem in a file that DVC does not watch."""

    name = "x"


BAD = [
    ("pretrain", {"stepz": 3}, "unknown setting pretrain.stepz; known are average, batch,"),
    ("pretrain", {"stepz": 3}, "steps; did you mean steps?"),
    ("pretrain", {"steps": "many"}, "pretrain.steps='many' must be a whole number"),
    ("pretrain", {"steps": 2.5}, "pretrain.steps=2.5 must be a whole number"),
    ("pretrain", {"batch": True}, "pretrain.batch=True must be a whole number"),
    ("pretrain", {"batch": 0}, "pretrain.batch=0 must be positive"),
    ("finetune", {"loss": "l1"}, "finetune.loss='l1' must be one of mse, psnr"),
    ("prepare", {"source": "web"}, "prepare.source='web' must be 'builtin' or 'folder'"),
    ("prepare", {"color": "yes"}, "prepare.color='yes' must be true or false"),
    ("prepare", {"train_scales": [1.0, 0]}, "prepare.train_scales[1]=0 must be greater than 0"),
    ("prepare", {"train_scales": []}, "prepare.train_scales=[] must be a list that is not empty"),
    ("prepare", {"test_share": 0.9}, "prepare: validation_share and test_share leave nothing to train on"),
    ("tune", {"sigma": 2}, "tune.sigma=2 must be at most 1"),
    ("safeguards", {"patience": 0}, "safeguards.patience=0 must be at least 1"),
    ("compute", {"precision": "fp8"}, "compute.precision='fp8' must be one of float32"),
    (
        "problems",
        {"csmri": {"ratio": 0.3, "angle": 4}},
        "unknown setting problems.csmri.angle; known are centered, mask, noise",
    ),
    ("problems", {"csmri": {"ratio": "much"}}, "problems.csmri.ratio='much' must be a number"),
    ("problems", {"csmri": {"noise": 2.0}}, "problems.csmri.noise=2.0: the standard deviation must be in [0, 1]"),
    ("problems", {"x": {"class": "tests.test_settings.Elsewhere"}}, "which DVC does not watch: name this file"),
    ("problems", {"deblur": {"kernel": "none.mat"}}, "problems.deblur: none.mat: no such file"),
    ("problems", {"mri": {}}, "problems.mri: unknown problem 'mri'"),
    ("problems", {"csmri": {"size": 40}}, "problems.csmri.size: DVC's run cache ignores"),
    ("cells", {"csmri-0.5": IMPLICIT}, "cells.csmri-0.5: a name may have letters, digits, _ and -"),
    ("cells", {"../x": IMPLICIT}, "cells.../x: a name may have"),
    ("cells", {"a b": IMPLICIT}, "cells.a b: a name may have"),
    ("regularizers", {"-x": {}}, "regularizers.-x: a name may have"),
    (
        "regularizers",
        {"convex_ridge": {"network": {"depth": 9}}},
        "convex_ridge.network: this regularizer is built over",
    ),
    ("cells", {"a": IMPLICIT | {"finetune": {"step": 4}}}, "unknown setting cells.a.finetune.step; known"),
    ("cells", {"a": IMPLICIT | {"finetune": {"steps": 0}}}, "cells.a.finetune.steps=0 must be positive"),
    ("cells", {"a": IMPLICIT | {"training_problem": {"mode": 1}}}, "unknown setting cells.a.training_problem.mode"),
    (
        "cells",
        {"a": IMPLICIT | {"training_problem": {"ratio": [0.2, 2.0]}}},
        "cells.a.training_problem.ratio=2.0: the share of k-space",
    ),
    ("cells", {"a": IMPLICIT | {"training_problem": {"ratio": []}}}, "training_problem: an empty list leaves nothing"),
    ("cells", {"a": {"problem": "csmri"}}, "cells.a lacks regularizer"),
    ("cells", {"a": IMPLICIT | {"regularizer": "red"}}, "a.regularizer names red, and regularizers has only implicit"),
    ("cells", {"a": IMPLICIT | {"problem": "ct"}}, "cells.a.problem names ct, and problems has only csmri"),
    ("regularizers", {"implicit": {"filters": 3}}, "unknown setting regularizers.implicit.filters; known are network"),
    (
        "regularizers",
        {"convex_ridge": {"filter": 3}},
        "regularizers.convex_ridge.filter; known are filter_size,",
    ),
    ("regularizers", {"implicit": {"pretrain": {"steps": -1}}}, "regularizers.implicit.pretrain.steps=-1 must be"),
    ("regularizers", {"ridge": {}}, "regularizers.ridge: unknown regularizer 'ridge'"),
    ("evaluate", {"robustness": {"csmri": [{"rate": 2}]}}, "unknown setting evaluate.robustness.csmri[0].rate; known"),
    ("evaluate", {"robustness": {}}, "evaluate.robustness lacks csmri"),
    ("evaluate", {"robustness": {"csmri": [], "ct": []}}, "evaluate.robustness names ct, and problems has only csmri"),
    ("network", {"widht": 4}, "unknown setting network.widht; known are activation, depth, width; did you mean width?"),
    ("network", {"activation": "relu"}, "activation='relu' must be one of elu, softplus"),
    ("network", {"width": "wide"}, "network.width='wide' must be a whole number"),
    ("register", {"margin": "much"}, "register.margin='much' must be a number"),
    ("register", {"margin": float("nan")}, "register.margin=nan must be a finite number"),
    ("cells", {"tuned": IMPLICIT}, "cells.tuned: models/tuned holds other models; choose another name"),
    ("evaluation", {}, "unknown section evaluation; known are cells, compute, evaluate,"),
]


@pytest.mark.parametrize(("section", "changes", "message"), BAD)
def test_a_bad_setting_is_named_by_its_path(section, changes, message, check):
    with pytest.raises(UserError, match=r"^params\.yaml: ") as caught:
        check(**{section: changes})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_text("tune: {sigma: 0.1, sigma: 0.2}\n")
    with pytest.raises(UserError, match=r"^params\.yaml: not valid YAML \(sigma stands twice\)$"):
        params.raw(tmp_path / "params.yaml")


def test_a_missing_section_is_named(tmp_path):
    whole = yaml.safe_load(written("tiny"))
    del whole["tune"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(whole))
    with pytest.raises(UserError, match=r"^params\.yaml: needs a section tune$"):
        params.load(tmp_path / "params.yaml")


def test_a_cell_and_a_regularizer_override_and_say_so(check):
    whole = check(
        cells={"a": IMPLICIT | {"finetune": {"steps": 5, "loss": "mse"}}},
        regularizers={"implicit": {"pretrain": {"steps": 7}, "network": {"width": 4}}},
    )
    assert (whole.finetuning("a").steps, whole.finetuning("a").batch, whole.finetune.steps) == (5, 2, 3)
    assert whole.pretraining("implicit").steps == 7
    assert whole.pretraining("least_squares") == whole.pretrain
    network = {"name": "dncnn", "channels": 3, "width": 4, "depth": 3}
    assert whole.description("implicit", 3) == {"name": "implicit", "network": network}
    said = params.overrides("finetune", "cells.a", whole.cells["a"].finetune, vars(whole.finetune))
    assert said == "cells.a.finetune overrides finetune: loss=mse in place of psnr, steps=5 in place of 3"
    assert params.overrides("finetune", "cells.a", {}, vars(whole.finetune)) == ""


def test_what_no_cell_uses_is_found(check):
    assert check(problems={"ct": {}}, evaluate={"robustness": {"csmri": [], "ct": []}}).unused("simulate") == ["ct"]
    assert check(regularizers={"red": {}}).unused("pretrain") == ["red"]
    assert check(regularizers={"red": {}}).unused("baseline") == check(regularizers={"red": {}}).unused("tune") == []
    assert check().unused("baseline") == check().unused("pretrain") == []


def test_the_defaults_of_the_library_are_those_of_the_pipeline():
    whole = params.load(ROOT / "params.yaml")
    assert whole.finetune == Finetuning()
    assert whole.pretrain == Pretraining()
    assert whole.compute == Compute()
    for training in (pretrain, finetune):
        assert inspect.signature(training).parameters["patience"].default == whole.safeguards.patience


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_whole_file_with_its_comments(name):
    over = {} if name == "default" else yaml.safe_load((ROOT / "presets" / f"{name}.yaml").read_text())
    expected = {
        section: value | over.get(section, {})
        if isinstance(value, dict) and section not in preset.REPLACED
        else over.get(section, value)
        for section, value in DEFAULT.items()
    }
    assert yaml.safe_load(written(name)) == expected
    for comment in ("# Every setting of the pipeline", "# steps of the convergence curves", "# of log λ and log σ"):
        assert comment in written(name)


def test_presets_are_laid_over_the_defaults_and_not_over_each_other(project):
    folder, defaults = project.folder, (ROOT / "params.yaml").read_text()
    assert (folder / "presets" / "default.yaml").read_text() == defaults  # `tiny` is in force
    preset.apply("brain", folder)
    assert (folder / "params.yaml").read_text() == preset.HEAD.format("brain") + written("brain")
    for _ in range(2):
        preset.apply("default", folder)
        assert (folder / "params.yaml").read_text() == defaults
        assert not (folder / "presets" / "default.yaml").exists()


@pytest.mark.parametrize("name", ["default", "brain", "tiny"])
def test_a_preset_without_the_defaults_below_it_is_told(name, project):
    """As in a clone of a repository in which params.yaml was committed under a preset, and its defaults were not."""
    (project.folder / "presets" / "default.yaml").unlink()
    before = (project.folder / "params.yaml").read_text()
    for text in (before, f"# mine\n{before}"):
        (project.folder / "params.yaml").write_text(text)
        with pytest.raises(UserError, match=r"presets/default.yaml, which keeps the defaults, is not here"):
            preset.apply(name, project.folder)
        assert (project.folder / "params.yaml").read_text() == text


def test_defaults_that_came_back_by_themselves_are_no_edits(project):
    """As by `git checkout params.yaml` under a preset."""
    shutil.copy(project.folder / "presets" / "default.yaml", project.folder / "params.yaml")
    assert preset.in_force(project.folder) == "default"
    preset.apply("brain", project.folder)
    assert preset.in_force(project.folder) == "brain"
    assert not list(project.folder.glob("**/*.bak*"))


def test_defaults_of_another_commit_take_the_place_of_those_that_were_kept(project):
    """As by `git checkout COMMIT params.yaml` under a preset."""
    path, kept = project.folder / "params.yaml", project.folder / "presets" / "default.yaml"
    before = kept.read_text()
    newer = before.replace("  patience: 10 ", "  patience: 11 ")
    path.write_text(newer)
    with pytest.warns(DataWarning, match=r"is kept as presets/default\.yaml\.bak$"):
        preset.apply("brain", project.folder)
    assert kept.read_text() == newer != before
    assert (project.folder / "presets" / "default.yaml.bak").read_text() == before
    assert yaml.safe_load(path.read_text())["safeguards"]["patience"] == 11


def test_edits_under_a_preset_are_kept(project):
    path = project.folder / "params.yaml"
    edited = path.read_text() + "# mine\n"
    path.write_text(edited)
    with pytest.warns(DataWarning, match=r"kept in params\.yaml\.bak"):
        preset.apply("default", project.folder)
    assert (project.folder / "params.yaml.bak").read_text() == edited


def test_earlier_kept_edits_are_not_overwritten(project):
    for number in range(3):
        preset.apply("brain", project.folder)
        path = project.folder / "params.yaml"
        path.write_text(path.read_text() + f"# mine {number}\n")
        with pytest.warns(DataWarning, match=r"kept in params\.yaml\.bak"):
            preset.apply("tiny", project.folder)
    kept = [path.read_text() for path in sorted(project.folder.glob("params.yaml.bak*"))]
    assert [text.splitlines()[-1] for text in kept] == ["# mine 0", "# mine 1", "# mine 2"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tune: {}\ntune: {}\n", "not valid YAML"),
        ("tune: [1\n", "not valid YAML"),
        ("- tune\n", "must be sections of settings"),
        ("tune:\n", "tune: must hold settings"),
    ],
)
def test_defaults_that_are_no_sections_are_told_by_the_preset(text, told):
    with pytest.raises(UserError, match=told):
        preset.overlaid(text, "tune: {sigma: 0.1}\n", "presets/mine.yaml")


MASKED = [
    ({"problems": {"csmri": {"mask": "FILE"}, "inpaint": {}}}, "simulate baseline tune finetune evaluate register"),
    ({"evaluate": {"robustness": {"csmri": [{"mask": "FILE"}], "inpaint": []}}}, "baseline evaluate"),
    ({"cells": {"csmri-implicit": IMPLICIT | {"training_problem": {"mask": "FILE"}}}}, "finetune"),
    ({"prepare": {"split": "FILE"}}, "prepare"),
]


@pytest.mark.parametrize(("changes", "expected"), MASKED, ids=[stages for _, stages in MASKED])
def test_a_file_of_new_content_re_runs_what_uses_it(changes, expected, tmp_path, check):
    """And nothing of another problem or cell."""
    mask = tmp_path / "mask.npy"
    np.save(mask, np.ones((32, 32), np.uint8))
    other = {"problem": "inpaint", "regularizer": "implicit"}
    sections = {
        "problems": {"csmri": {}, "inpaint": {}},
        "cells": {"csmri-implicit": IMPLICIT},
        "evaluate": {"robustness": {"csmri": [], "inpaint": []}},
        "finetune": {"patch": 32},
        **yaml.safe_load(yaml.safe_dump(changes).replace("FILE", str(mask))),
    }
    sections["cells"] = {**sections["cells"], "inpaint-implicit": other}
    manifests = []
    for _ in range(2):
        with pytest.warns(DataWarning, match="outside of data/raw"):
            manifests.append(fingerprints.manifests(check(**sections)))
        np.save(mask, np.eye(32, dtype=np.uint8))
    before, after = manifests
    changed = {stage for stage in before if before[stage] != after[stage]}
    assert {stage.partition("/")[0] for stage in changed} == set(expected.split())
    assert not any("inpaint" in stage for stage in changed)


def test_a_preset_of_another_name_is_named(project):
    done = project.run(sys.executable, "-m", "pipeline.preset", "huge", check=False)
    assert done.returncode == 1
    assert f"unknown preset 'huge': there are {', '.join(preset.names(ROOT))}" in done.stderr


@pytest.mark.parametrize(("patch", "message"), [(20, "the kernel is 25x25, larger"), (31, "scale=2 must divide")])
def test_patches_that_can_not_be_blurred_are_refused_before_training(patch, message, check):
    cell = {"problem": "superres", "regularizer": "implicit", "finetune": {"patch": patch}}
    with pytest.raises(UserError, match=rf"cells\.a trains on patches of .*{message}"):
        check(cells={"a": cell}, problems={"superres": {}}, evaluate={"robustness": {"csmri": [], "superres": []}})


def test_a_mask_that_does_not_fit_the_patches_is_refused_before_training(tmp_path, check):
    mask = tmp_path / "mask.npy"
    np.save(mask, np.eye(40, dtype=np.uint8))
    with pytest.raises(UserError, match=r"cells\..* trains on patches of .*40x40"):
        check(problems={"csmri": {"mask": str(mask)}})


def test_the_check_knows_what_the_library_does():
    hints = typing.get_type_hints(params.Preparation)
    assert typing.get_args(hints["axes"]) == ("", *io.AXES)
    assert typing.get_args(typing.get_args(hints["scaling"])[0]) == io.SCALINGS
