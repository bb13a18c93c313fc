"""What a registered version carries, what it answers to requests, and a server of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException

from benchmarks.serving import ask, serving
from elder import io, problems, regularizers
from elder.model.model import Hyperparameters, Model
from elder.problems.samples import measure
from pipeline.registry import card, packaging, served_model

SIZE = (20, 24)
# An untrained network has no fixed points to speak of. With these requests its solves end soon all the same.
SHORT = {"tol": 1e-2, "max_steps": 20}


def save(model: Model, folder: Path) -> Path:
    """The model as a registered version keeps it."""
    model.save(folder / "bundle")
    with packaging.contents(model.problem, folder / "bundle", model.channels, SIZE) as contents:
        mlflow.pyfunc.save_model(folder / "version", **contents)
    return folder / "version"


@pytest.fixture(scope="module")
def version(small_model, tmp_path_factory) -> Path:
    return save(small_model, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def served(version):
    """The model behind the checks of MLflow, as its server calls it."""
    return mlflow.pyfunc.load_model(str(version))


@pytest.fixture(scope="module")
def pair(small_model) -> dict[str, np.ndarray]:
    """Two measurements, complex (2, h, w), each with its mask, (2, h, w)."""
    generator = torch.Generator().manual_seed(5)
    two = measure(small_model.problem, ["a", "b"], [torch.rand((1, 1, *SIZE), generator=generator) for _ in range(2)])
    arrays = [small_model.problem.export(sample.operator, sample.y) for sample in two]
    return {
        "measurement": np.concatenate([a["y"][:, 0] for a in arrays]),
        "mask": np.concatenate([a["mask"][:, 0] for a in arrays]),
    }


def channels(y: np.ndarray) -> np.ndarray:
    return np.stack([y.real, y.imag], -1)


def test_a_batch_a_single_one_and_every_form_of_the_arrays(served, small_model, pair):
    """Complex or two real channels, arrays or lists, one mask for all or one for each: the picture is the model's."""
    model = replace(small_model, hyperparameters=replace(small_model.hyperparameters, **SHORT))
    y, masks = pair["measurement"], pair["mask"]
    expected, _ = model.reconstruct(y[:, None], mask=masks[:, None])
    expected = expected[:, 0].clip(0, 1)

    def ask(measurement, mask) -> np.ndarray:
        return served.predict({"measurement": measurement, "mask": mask}, params=SHORT)

    both = ask(y, masks)
    assert (both.shape, both.dtype) == ((2, *SIZE), np.float32)
    assert np.array_equal(both, expected)
    assert np.array_equal(ask(channels(y), masks), expected)
    assert np.array_equal(ask(channels(y).tolist(), masks.tolist()), expected)
    for index in range(2):
        one = ask(y[index], masks[index])
        assert one.shape == SIZE
        assert np.array_equal(ask(channels(y[index]), masks[index]), one)
        assert np.abs(one - expected[index]).max() < 1e-4
    shared = ask(np.stack([y[0], y[0]]), masks[0])
    assert np.abs(shared - expected[0]).max() < 1e-4


def test_details_beside_the_picture(served, pair):
    details = served.predict(pair, params={**SHORT, "details": True})
    assert details.keys() == {"picture", "energy", "steps", "status", "misfit"}
    assert np.array_equal(details["picture"], served.predict(pair, params=SHORT))
    assert all(len(details[name]) == 2 for name in details)
    single = {name: value[0] for name, value in pair.items()}
    one = served.predict(single, params={**SHORT, "details": True})
    assert one["picture"].shape == SIZE
    assert one["energy"] == pytest.approx(details["energy"][0], rel=1e-4)
    assert (one["steps"], one["status"]) == (details["steps"][0], details["status"][0])


def test_params_reach_the_solver(served, pair):
    def ask(**params) -> dict:
        return served.predict(pair, params={"details": True, **params})

    assert ask(max_steps=3, tol=1e-9)["status"] == ["max_steps"] * 2
    assert ask(max_steps=3, tol=1e-9)["steps"] == [3, 3]
    assert ask(tol=0.9)["status"] == ["converged"] * 2
    stopped = ask(time_limit=1e-9, tol=1e-9)
    assert stopped["status"] == ["time_limit"] * 2
    assert stopped["steps"] == [0, 0]
    # At the start, f(x) = g(x) + s λ h(x) is linear in the scale s.
    start = {"time_limit": 1e-9, "tol": 1e-9}
    one, two, three = (np.array(ask(lambda_scale=scale, **start)["energy"]) for scale in (1.0, 2.0, 3.0))
    assert (two > one).all()
    assert three - two == pytest.approx(two - one, rel=1e-6)


def test_a_request_that_the_server_gives_up_stops_its_solve(served, pair, monkeypatch):
    monkeypatch.setenv(served_model.SERVER_TIMEOUT, "1e-9")
    answer = served.predict(pair, params={"details": True, "time_limit": 3600.0, "tol": 1e-9})
    assert answer["status"] == ["time_limit"] * 2


# What is changed in a good request, and what the message says.
BAD = [
    ({"measurement": None}, {}, "measurement is missing"),
    ({"mask": None}, {}, "needs the mask that sampled it"),
    ({"measurement": lambda y: y[..., 0]}, {}, "measurement is complex for this model"),
    ({"measurement": lambda y: y[..., [0, 0, 0]]}, {}, "a last axis of real and imaginary part"),
    ({"measurement": lambda y: y[None]}, {}, "measurement is complex for this model"),
    ({"measurement": lambda y: y[:0]}, {}, "measurement is empty"),
    ({"measurement": lambda y: y[:, :10]}, {}, "mask is 20x24 but the measurement is 10x24"),
    ({"measurement": lambda y: np.full_like(y, np.nan)}, {}, "holds NaN or infinite values"),
    ({"measurement": lambda y: np.full_like(y, np.inf)}, {}, "holds NaN or infinite values"),
    ({"measurement": lambda y: np.where(y < 0, None, y)}, {}, "holds NaN or infinite values"),
    ({"measurement": lambda y: 1e30 * y}, {}, "the picture is not finite"),
    ({"measurement": lambda y: y.astype(str)}, {}, "measurement must be an array of numbers"),
    ({"mask": lambda mask: mask[:, :, :10]}, {}, "mask is 20x10 but the measurement is 20x24"),
    ({"mask": lambda mask: mask.astype(str)}, {}, "mask must be an array of numbers"),
    ({"mask": lambda mask: np.zeros_like(mask)}, {}, "mask must hold two values"),
    ({"mask": lambda mask: mask[0, 0]}, {}, "mask"),
    ({"mask": lambda mask: np.concatenate([mask, mask])}, {}, "one for each of the 2; got 4"),
    ({}, {"tol": 0.0}, "tol=0.0 must be a positive number"),
    ({}, {"tol": float("nan")}, "tol=nan must be a positive number"),
    ({}, {"max_steps": 0}, "max_steps=0 must be a positive number"),
    ({}, {"lambda_scale": -1.0}, "lambda_scale=-1.0 must be a positive number"),
    ({}, {"time_limit": float("inf")}, "time_limit=inf must be a positive number"),
]


def spoiled(pair: dict[str, np.ndarray], changes: dict) -> dict[str, np.ndarray]:
    """A request with some of its arrays changed, or left out for `None`."""
    request = {"measurement": channels(pair["measurement"]), "mask": pair["mask"]}
    for name, change in changes.items():
        value = request.pop(name)
        if change is not None:
            request[name] = change(value)
    return request


@pytest.mark.parametrize(("changes", "params", "message"), BAD)
def test_a_bad_request_is_named(changes, params, message, served, pair):
    with pytest.raises(MlflowException) as raised:
        served.predict(spoiled(pair, changes), params={**SHORT, **params})
    assert raised.value.get_http_status_code() == 400
    assert message in raised.value.message


def test_a_request_names_no_file_of_the_server(served, pair, tmp_path):
    """The library takes text for the name of a file. A stranger must not."""
    io.write_image(tmp_path / "mask.png", np.ones(SIZE))
    with pytest.raises(MlflowException):
        served.predict({**pair, "mask": str(tmp_path / "mask.png")})
    with pytest.raises(MlflowException, match="mask must be an array of numbers"):
        served.predict({**pair, "mask": [str(tmp_path / "mask.png")]})


def test_a_version_carries_its_code_and_pins_what_it_needs(version):
    assert (version / "code" / "elder" / "solvers" / "loop.py").is_file()
    carried = {path.suffix for path in (version / "code").rglob("*") if path.is_file()}
    assert carried == {".py"}
    assert {path.name for path in (version / "code").iterdir()} == {"elder"}
    assert not [path for path in version.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    lines = (version / "requirements.txt").read_text().split()
    names = [line.partition("==")[0] for line in lines]
    assert names == [*packaging.REQUIRED, *packaging.LOADED_BY]
    assert all("==" in line and "+" not in line for line in lines)


def test_the_example_goes_through_the_signature(version, served):
    example = json.loads((version / "serving_input_example.json").read_text())
    answer = served.predict({name: np.array(value) for name, value in example["inputs"].items()}, params=SHORT)
    assert answer.shape == (1, packaging.SMALL, packaging.SMALL)


def test_logging_and_loading_warn_of_nothing(small_model, tmp_path):
    code = (
        "import sys, mlflow, test_serving, pathlib\n"
        "from elder.model.model import load\n"
        "version = test_serving.save(load(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "mlflow.pyfunc.load_model(str(version))\n"
    )
    small_model.save(tmp_path / "model")
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "model", tmp_path],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "warn" not in done.stderr.lower()


def small(problem: str, channels: int = 1, **settings: Any) -> Model:
    torch.manual_seed(0)
    network = {"name": "dncnn", "channels": channels, "width": 6, "depth": 3}
    description = {"name": "least_squares", "network": network}
    regularizer = regularizers.make(**description).eval().requires_grad_(False)
    return Model(problems.make(problem, settings), regularizer, Hyperparameters(0.1, 0.1, 5.0), description)


def test_a_default_is_taken_only_when_it_is_asked_for(tmp_path, rng):
    """A misspelled argument would be dropped by MLflow, and the angles would be others without a word."""
    model = small("ct", angles=9)
    served = mlflow.pyfunc.load_model(str(save(model, tmp_path)))
    (sample,) = measure(model.problem, ["x"], [torch.rand((1, 1, *SIZE), generator=rng)])
    inputs = packaging.served_inputs(model.problem, sample)
    assert inputs.keys() == {"measurement", "size", "theta", "offset"}
    x = served.predict(inputs, params=SHORT)
    assert np.array_equal(served.predict({**inputs, "theta": None, "offset": None}, params=SHORT), x)
    angles = inputs.pop("theta")
    with pytest.raises(MlflowException, match=r"missing inputs \['theta'\].*extra inputs: \['angles'\]"):
        served.predict({**inputs, "angles": angles}, params=SHORT)


def test_a_small_picture_knows_its_scale(tmp_path, rng):
    model = small("superres", kernel="motion")
    served = mlflow.pyfunc.load_model(str(save(model, tmp_path)))
    (sample,) = measure(model.problem.override({"scale": 3}), ["x"], [torch.rand((1, 1, 54, 60), generator=rng)])
    inputs = packaging.served_inputs(model.problem, sample)
    x = served.predict(inputs, params=SHORT)
    assert x.shape == (1, 54, 60)
    assert np.array_equal(served.predict({**inputs, "scale": 3}, params=SHORT), x)
    assert served.predict({**inputs, "scale": None}, params=SHORT).shape == (1, 36, 40)
    with pytest.raises(MlflowException, match="must be 2, 3 or 4"):
        served.predict({**inputs, "scale": 7}, params=SHORT)


def test_a_mask_that_the_bundle_holds_may_be_left_out(tmp_path, rng):
    mask = (torch.rand(SIZE, generator=rng) < 0.5).numpy().astype(np.uint8)
    np.save(tmp_path / "mask.npy", mask)
    model = small("inpaint", mask=str(tmp_path / "mask.npy"))
    served = mlflow.pyfunc.load_model(str(save(model, tmp_path)))
    (sample,) = measure(model.problem, ["x"], [torch.rand((1, 1, *SIZE), generator=rng)])
    (tmp_path / "mask.npy").unlink()
    y = sample.y[0, 0].numpy()
    x = served.predict({"measurement": y}, params=SHORT)
    assert np.array_equal(x, served.predict({"measurement": y, "mask": mask}, params=SHORT))
    assert np.array_equal(x[mask > 0], y[mask > 0])


def test_color_has_an_axis_and_null_is_a_missing_pixel(tmp_path, rng):
    model = small("inpaint", channels=3)
    served = mlflow.pyfunc.load_model(str(save(model, tmp_path)))
    (sample,) = measure(model.problem, ["x"], [torch.rand((1, 3, *SIZE), generator=rng)])
    y, mask = sample.y[0].numpy(), sample.operator.mask[0, 0].numpy()
    x = served.predict({"measurement": y, "mask": mask}, params=SHORT)
    assert x.shape == (3, *SIZE)
    missing = np.where(mask > 0, y, np.full((), None)).tolist()
    assert np.array_equal(served.predict({"measurement": missing}, params=SHORT), x)
    assert served.predict({"measurement": y[None], "mask": mask}, params=SHORT).shape == (1, 3, *SIZE)
    with pytest.raises(MlflowException, match=r"measurement must be \(3, h, w\), or a batch of such; got \(20, 24\)"):
        served.predict({"measurement": y[0], "mask": mask}, params=SHORT)


def test_a_problem_of_one_s_own_comes_with_its_module(tmp_path, monkeypatch):
    source = Path(__file__).parent.parent / "docs" / "own-problem.md"
    (tmp_path / "wide.py").write_text(source.read_text().split("```python\n")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    folder = save(small("wide", 1, **{"class": "wide.Wide"}), tmp_path)
    assert (folder / "code" / "wide.py").read_text() == (tmp_path / "wide.py").read_text()
    assert (folder / "code" / "elder" / "__init__.py").is_file()


def test_the_card_says_what_a_consumer_needs(small_model):
    figures = {"psnr": 27.123, "ssim": 0.81}
    evidence = card.Evidence(
        manifest={"source": "folder", "images": [{"split": "train"}] * 3 + [{"split": "test"}]},
        license="CC-BY-4.0",
        validation_psnr=28.5,
        metrics={"finetuned": figures},
        baselines={"initial": {"psnr": 20.0, "ssim": 0.5}, "total_variation": {"psnr": 26.0, "ssim": 0.7}},
    )
    text = card.write(small_model, evidence)
    for line in (
        "- Data: a folder of pictures: 3 train, 1 test.",
        "- License of the data: CC-BY-4.0.",
        "- Validation: 28.50 dB. The champion is chosen by this number. The test pictures chose nothing.",
        "| zero-filled | 20.00 | 0.5000 |",
        "| total variation | 26.00 | 0.7000 |",
        "| **this model** | 27.12 | 0.8100 |",
        'model = mlflow.pyfunc.load_model("models:/elder-csmri@champion")',
    ):
        assert line in text.splitlines()
    assert '"ratio": 0.4' in text
    assert "License of the data: unknown" in card.write(small_model, replace(evidence, license=""))


@pytest.mark.slow
def test_a_server_answers_many_and_names_what_is_bad(version, served, small_model, pair, tmp_path):
    """200 requests of 8 clients, all right, none lost; then bad ones, each named; then SIGTERM."""
    generator = torch.Generator().manual_seed(6)
    images = [torch.rand((1, 1, *SIZE), generator=generator) for _ in range(10)]
    samples = measure(small_model.problem, [str(index) for index in range(10)], images)
    requests = [packaging.served_inputs(small_model.problem, sample) for sample in samples]
    expected = [served.predict(request, params=SHORT) for request in requests]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    with serving(str(version), {**environment, "OMP_NUM_THREADS": "1"}, tmp_path) as (address, _):
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda index: ask(address, requests[index % 10], SHORT), range(200)))
        for index, (status, picture) in enumerate(answers):
            assert status == 200
            assert np.abs(np.array(picture) - expected[index % 10]).max() < 1e-4
        assert len(answers) == 200
        assert len(BAD) >= 20
        for changes, params, message in BAD:
            status, named = ask(address, spoiled(pair, changes), {**SHORT, **params})
            assert status == 400
            assert message in named
        assert ask(address, requests[0], SHORT)[0] == 200
    with pytest.raises(urllib.error.URLError):
        ask(address, requests[0], SHORT)


@pytest.mark.slow
def test_a_server_that_gives_up_on_a_request_goes_on(version, pair, tmp_path):
    """The solve would take minutes. It ends with the request, so the server is free when it is told to stop."""
    request = spoiled(pair, {})
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with serving(str(version), {**environment, "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": "1"}, tmp_path) as (address, _):
        status, answer = ask(address, request, {"tol": 1e-16, "max_steps": 100_000, "details": True})
        assert status in (200, 504)
        assert status == 504 or answer["status"] == ["time_limit"] * 2
