"""Benchmarks that need another machine or hours, on a small network; and what a missed target does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import accelerator, common
from benchmarks.common import Row, counted


def test_that_of_accelerators_runs_on_a_processor(small_model, monkeypatch):
    monkeypatch.setattr(accelerator, "on", lambda compute: small_model.on(compute))
    monkeypatch.setattr(accelerator, "PRETRAIN", replace(accelerator.PRETRAIN, patch=24))
    monkeypatch.setattr(accelerator, "FINETUNE", replace(accelerator.FINETUNE, patch=24, max_steps=2))
    monkeypatch.setattr(accelerator.importlib.util, "find_spec", lambda name: None)  # deepinv
    rows = list(accelerator.run(1, "cpu"))
    assert [row.unit for row in rows] == ["steps a second", "of the time in float32"] * 2
    assert all(row.figure > 0 for row in rows)


@pytest.mark.parametrize(("figure", "missed"), [(1.0, False), (1.1, True)])
def test_a_target_that_is_missed_is_an_exit_code(figure, missed, monkeypatch, tmp_path):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results.json")
    row: Row = counted("batch", "a case", figure, "of the time", 1.0)
    assert ("MISSED" in str(row)) == missed
    if missed:
        with pytest.raises(SystemExit, match="1 of 1 figures miss their target"):
            common.record([row])
    else:
        common.record([row])
    assert common.RESULTS.exists()
