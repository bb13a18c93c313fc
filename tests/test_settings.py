"""Every setting has an effect: on DVC's keys, and on what runs again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import yaml
from conftest import ROOT, copy_project
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from dvc.stage.cache import _get_cache_hash

from elder import UserError
from elder.backend import Compute
from elder.networks import NETWORKS
from elder.problems import PROBLEMS
from elder.regularizers import OF_FILTERS, OVER_A_NETWORK
from elder.training.finetune import Finetuning
from elder.training.pretrain import Pretraining
from pipeline import params, preset, settings
from pipeline.settings import Cell

DEFAULT = yaml.safe_load((ROOT / "params.yaml").read_text())
RECORDS = (
    Cell,
    Compute,
    Finetuning,
    Pretraining,
    params.Evaluation,
    params.Preparation,
    params.Registration,
    params.Safeguards,
    params.Search,
)
PARTS = {**PROBLEMS, **NETWORKS, **OF_FILTERS, **OVER_A_NETWORK}


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
    """The stages that run again for a change of a setting, but for the report, which shows every setting."""
    return {
        stage
        for stage, names in watchers.items()
        if stage != "report" and any(f"{setting}.".startswith(f"{name}.") for name in names)
    }


def test_every_setting_is_watched_by_a_stage(watchers):
    for path in leaves(DEFAULT):
        setting = ".".join(str(name) for name in path if isinstance(name, str))
        # Sections of what changes no result.
        assert bool(affected(watchers, setting)) == (path[0] not in ("compute", "safeguards")), setting


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


@pytest.mark.parametrize("name", preset.names())
def test_two_values_of_a_setting_give_two_keys(name, tmp_path):
    preset.apply(name, tmp_path / "params.yaml")
    whole = yaml.safe_load((tmp_path / "params.yaml").read_text())
    paths = list(leaves(whole))
    assert ("prepare", "shorter_side") in paths
    assert len({key(whole), *(key(changed(whole, path)) for path in paths)}) == len(paths) + 1


def test_dvc_ignores_the_names_that_the_check_refuses():
    for name in params.IGNORED_BY_DVC:
        assert key({"prepare": {name: 40}}) == key({"prepare": {name: 96}})


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_no_record_of_settings_has_a_name_that_dvc_ignores(record):
    assert not {field.name for field in fields(record)} & set(params.IGNORED_BY_DVC)


@pytest.mark.parametrize("name", PARTS)
def test_no_problem_regularizer_or_network_has_a_name_that_dvc_ignores(name):
    assert not inspect.signature(PARTS[name]).parameters.keys() & set(params.IGNORED_BY_DVC)


def test_a_setting_of_ones_own_that_dvc_would_ignore_is_refused(tmp_path, monkeypatch):
    whole = yaml.safe_load((ROOT / "params.yaml").read_text())
    whole["problems"]["csmri"]["size"] = 40
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(whole))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "_whole", settings._whole.__wrapped__)
    with pytest.raises(UserError, match=r"problems\.csmri\.size: DVC's run cache ignores"):
        params.check()
