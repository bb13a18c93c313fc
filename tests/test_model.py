"""The bundle on disk, `load` and `reconstruct`."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import elder
from elder import UserError, problems
from elder.problems.samples import measure


@pytest.fixture
def measurement(small_model, rng):
    return measure(small_model.problem, ["x"], [torch.rand((1, 1, 18, 21), generator=rng)])[0]


def test_a_bundle_reconstructs_as_the_model_that_wrote_it(small_model, bundle, measurement):
    loaded = elder.load(bundle)
    assert loaded.problem == small_model.problem
    assert loaded.hyperparameters == small_model.hyperparameters
    expected = small_model.solve(measurement.operator, measurement.y)
    x, info = loaded.reconstruct(measurement.y, mask=measurement.operator.mask.numpy())
    assert torch.equal(x, expected.x)
    assert info.steps == expected.steps.tolist()


def test_a_bundle_is_two_files_without_pickle(bundle):
    assert sorted(path.name for path in bundle.iterdir()) == ["config.json", "weights.safetensors"]


def test_arrays_give_arrays_and_a_single_picture_plain_figures(bundle, measurement):
    y, mask = measurement.y[0, 0].numpy(), measurement.operator.mask[0, 0].numpy()
    x, info = elder.load(bundle).reconstruct(y, mask=mask)
    assert isinstance(x, np.ndarray)
    assert x.shape == y.shape
    assert info.status == "converged"
    assert isinstance(info.steps, int)
    assert info.seconds > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y, m: (y[0, 0, 0], m), "must be"),
        (lambda y, m: (y[0, 0].real, m), "complex"),
        (lambda y, m: (y[0, 0] * np.nan, m), "NaN"),
        (lambda y, m: (y[0, 0], m[:-1]), "mask is 17x21 but the measurement is 18x21"),
        (lambda y, m: (y[0, 0], m * 0), "two values"),
        (lambda y, m: (y[0, 0], None), "needs the mask"),
    ],
)
def test_a_measurement_that_does_not_fit_is_named(change, message, bundle, measurement):
    y, mask = change(measurement.y.numpy(), measurement.operator.mask[0, 0].numpy())
    arguments = {} if mask is None else {"mask": mask}
    with pytest.raises(UserError, match=message):
        elder.load(bundle).reconstruct(y, **arguments)


def test_a_time_limit_is_no_argument_of_the_operator(bundle, measurement):
    y, mask = measurement.y[0, 0].numpy(), measurement.operator.mask[0, 0].numpy()
    model = elder.load(bundle)
    _, info = model.reconstruct(y, mask=mask, time_limit=1e-9)
    assert (info.status, info.steps) == ("time_limit", 0)
    with pytest.raises(UserError, match="time_limit=0 must be a positive number of seconds"):
        model.reconstruct(y, mask=mask, time_limit=0)


@pytest.mark.parametrize(("step", "warns"), [(5.0, False), (0.15, False), (0.05, True)])
def test_a_step_size_with_which_everything_seems_solved_is_told(step, warns, small_model, tmp_path):
    hyperparameters = replace(small_model.hyperparameters, step=step)
    replace(small_model, hyperparameters=hyperparameters).save(tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        elder.load(tmp_path)
    assert ["tuning.step times tuning.weight is 0.005" in str(entry.message) for entry in told] == [True] * warns


def test_a_missing_bundle_is_named(tmp_path):
    with pytest.raises(UserError, match="no model here"):
        elder.load(tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "shape", "json", "format"])
def test_a_broken_bundle_is_named(damage, bundle, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(bundle, folder)
    config = json.loads((folder / "config.json").read_text())
    if damage == "truncate":
        weights = (folder / "weights.safetensors").read_bytes()
        (folder / "weights.safetensors").write_bytes(weights[: len(weights) // 2])
    elif damage == "shape":
        config["regularizer"]["network"]["width"] = 9
    elif damage == "format":
        config["format"] = 99
    (folder / "config.json").write_text("{" if damage == "json" else json.dumps(config))
    with pytest.raises(UserError, match="broken"):
        elder.load(folder)


@pytest.mark.parametrize(
    ("name", "setting"), [("csmri", "mask"), ("inpaint", "mask"), ("deblur", "kernel"), ("superres", "kernel")]
)
def test_a_bundle_loads_where_the_files_of_its_problem_are_not(name, setting, small_model, tmp_path, rng):
    """Saved twice, since every stage of the pipeline loads the bundle of the one before."""
    there = tmp_path / "there"
    there.mkdir()
    values = (np.random.default_rng(0).random((9, 9)) < 0.6).astype(np.uint8)
    values[0, 0] = 1
    np.save(there / "values.npy", values)
    trained = replace(small_model, problem=problems.make(name, {setting: str(there / "values.npy")}))
    trained.save(tmp_path / "first")
    there.rename(tmp_path / "gone")
    elder.load(tmp_path / "first").save(tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    shutil.move(tmp_path / "second", tmp_path / "moved")
    moved = elder.load(tmp_path / "moved")
    kept = np.load(tmp_path / "moved" / f"{setting}.npy")
    assert kept == pytest.approx(values if setting == "mask" else values / values.sum())
    measured = moved.problem.simulate(
        torch.rand(
            1,
            1,
            18 if name == "superres" else 9,
            18 if name == "superres" else 9,
            generator=torch.Generator().manual_seed(0),
        ),
        torch.Generator(),
    )
    x, _ = moved.reconstruct(measured[1])
    assert x.isfinite().all()


@pytest.mark.parametrize(
    ("name", "given", "known"),
    [
        ("csmri", "maks", "mask"),
        ("inpaint", "masks", "mask"),
        ("deblur", "kernels", "kernel"),
        ("superres", "psf", "kernel, scale"),
        ("ct", "angles", "size, theta, offset"),
        ("denoise", "sigma", "none"),
    ],
)
def test_a_typo_in_an_operator_argument_is_refused(name, given, known, small_model):
    model = replace(small_model, problem=problems.make(name))
    with pytest.raises(UserError, match=f"unknown operator argument '{given}' of {name}: known are {known}$"):
        model.reconstruct(np.ones((16, 16), np.float32), **{given: np.ones((16, 16))})
