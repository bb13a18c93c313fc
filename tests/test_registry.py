"""The gate before the champion, on a real MLflow store."""

from __future__ import annotations

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from elder import problems
from elder.problems.samples import measure
from pipeline import registry


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_experiment("test")
    yield MlflowClient()
    mlflow.set_tracking_uri(None)


def test_the_champion_moves_only_through_the_gate(store, small_model, bundle, rng, monkeypatch):
    test = measure(small_model.problem, ["x"], [torch.rand((1, 1, 20, 24), generator=rng)])

    def register(psnr: float, data: str = "a") -> registry.Verdict:
        return registry.register(small_model.problem, bundle, psnr, data, test, margin=0.1)

    def champion() -> str:
        return store.get_model_version_by_alias("elder-csmri", "champion").version

    first = register(30.0)
    assert first.promoted
    assert first.champion_psnr is None
    worse = register(30.05)
    assert not worse.promoted
    assert (str(champion()), str(store.get_model_version_by_alias("elder-csmri", "challenger").version)) == ("1", "2")
    assert "less than 0.1" in worse.reason
    assert register(30.2).promoted
    assert str(champion()) == "3"
    # On other data the champion is measured again: its figure of 30.2 dB says nothing there.
    other = register(60.0, data="b")
    assert other.champion_psnr != pytest.approx(30.2)
    assert other.promoted
    monkeypatch.setattr(registry, "smoke", lambda *arguments: False)
    broken = register(90.0, data="b")
    assert not broken.promoted
    assert "not finite" in broken.reason


def test_a_served_model_gets_a_measurement_in_the_convention_of_its_problem(rng):
    """With `centered`, y has the zero frequency in the middle, as the mask does."""
    problem = problems.make("csmri", {"centered": True})
    (sample,) = measure(problem, ["x"], [torch.rand((1, 1, 20, 24), generator=rng)])
    inputs = registry.served_inputs(problem, sample)
    y = torch.view_as_complex(torch.from_numpy(inputs.pop("measurement")))[:, None]
    operator, measured = problem.accept(y, **inputs)
    assert torch.equal(measured, sample.y)
    assert torch.equal(operator.A(sample.truth), sample.y)
