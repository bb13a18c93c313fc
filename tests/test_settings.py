"""Every setting has an effect: on DVC's keys, and on what runs again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import yaml
from conftest import ROOT
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

RECORDS = (
    Cell,
    Compute,
    Finetuning,
    Pretraining,
    params.Evaluation,
    params.Preparation,
    params.Registration,
    params.Search,
)
PARTS = {**PROBLEMS, **NETWORKS, **OF_FILTERS, **OVER_A_NETWORK}


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
