"""Measurements in other units and conventions: right after a setting, or told in one line."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from skimage.data import camera
from skimage.transform import resize

from elder import UserError, cli, io, problems, regularizers
from elder.errors import DataWarning
from elder.model.model import Hyperparameters, Model
from elder.problems import kernels, masks, samples
from elder.solvers import Status

SIZE = (32, 36)


def model_for(name: str, **settings) -> Model:
    """A model with a convex energy, whose minimum does not depend on rounding."""
    description = {"name": "convex_ridge", "channels": 1}
    regularizer = regularizers.make(**description).eval().requires_grad_(False)
    return Model(problems.make(name, settings), regularizer, Hyperparameters(0.01, 0.1, 5.0, 1e-5, 500), description)


@pytest.fixture(scope="module")
def clean() -> torch.Tensor:
    return io.to_tensor(np.asarray(resize(camera() / 255.0, SIZE, anti_aliasing=True)))


def measured(problem, clean) -> dict[str, Any]:
    operator, y = problem.simulate(clean, torch.Generator().manual_seed(3))
    return {key: value[0, 0] if key == "y" else value.squeeze() for key, value in problem.export(operator, y).items()}


@pytest.mark.parametrize("factor", [1e-3, 0.1, 255.0, 1e4])
@pytest.mark.parametrize(
    ("name", "settings"),
    [("csmri", {"ratio": 0.4}), ("inpaint", {}), ("superres", {}), ("deblur", {"noise": 0.01}), ("ct", {"angles": 20})],
)
def test_the_picture_scales_with_the_measurement(name, settings, factor, clean):
    """reconstruct(c·y) = c·reconstruct(y) to 1e-3 for any unit c, with data_range=auto."""
    model = model_for(name, **settings)
    given = measured(model.problem, clean)
    y = given.pop("y")
    x, info = model.reconstruct(y, data_range="auto", **given)
    scaled, again = model.reconstruct((factor * y).astype(y.dtype), data_range="auto", **given)
    assert np.linalg.norm(scaled - factor * x) <= 1e-3 * factor * np.linalg.norm(x)
    assert again.status == info.status


def reconstructed(model, given, tmp_path, out: str, *options: str) -> np.ndarray:
    """What `elder reconstruct` writes for the arrays of a measurement file."""
    model.save(tmp_path / "model")
    np.savez(tmp_path / "y.npz", **given)
    arguments = ["reconstruct", str(tmp_path / "model"), "--measurement", str(tmp_path / "y.npz")]
    assert cli.main([*arguments, "--out", str(tmp_path / out), *options]) == 0
    return io.read_arrays(tmp_path / out)["y"]


def test_a_png_shows_other_units_from_black_to_white(clean, tmp_path, capsys):
    model = model_for("inpaint")
    given = measured(model.problem, clean)
    deep = given | {"y": 4095 * given["y"]}
    right, _ = model.reconstruct(**given)
    for options in (["--data-range", "4095"], ["--data-range", "auto"]):
        found = reconstructed(model, deep, tmp_path, "x.png", *options) / 255
        assert np.corrcoef(found.flatten(), right.flatten())[0, 1] > 0.99
    assert reconstructed(model, deep, tmp_path, "x.tif", "--data-range", "4095").max() > 3000
    assert reconstructed(model, given | {"y": given["y"][None]}, tmp_path, "x.png").shape == SIZE
    capsys.readouterr()


@pytest.mark.parametrize("kernel", [np.ones((1, 9)) / 9, np.ones((9, 1))])
def test_a_kernel_of_one_row_or_column(kernel, clean, tmp_path):
    np.save(tmp_path / "kernel.npy", kernel)
    problem = problems.make("deblur", {"kernel": str(tmp_path / "kernel.npy"), "noise": 0.0})
    (sample,) = samples.measure(problem, ["a"], [clean])
    samples.save(tmp_path / "a.npz", problem, sample)
    again = samples.read(tmp_path / "a.npz", problems.make("deblur"), clean)
    assert again.operator.A(clean) == pytest.approx(sample.y, abs=1e-6)


def test_a_kernel_beside_y_is_made_to_sum_to_one(clean):
    model = model_for("deblur")
    given = measured(model.problem, clean)
    x, _ = model.reconstruct(**given)
    scaled: dict[str, Any] = given | {"kernel": 4 * given["kernel"]}  # a power of two: no other rounding
    again, _ = model.reconstruct(**scaled)
    assert again == pytest.approx(x, abs=1e-4)
    kernel = given["kernel"]
    unusable: list[Any] = [kernel[0], -kernel, 0 * kernel, np.dstack([kernel] * 3)]
    for wrong in unusable:
        with pytest.raises(UserError, match=r"kernel must be"):
            model.reconstruct(**given | {"kernel": wrong})


def test_kernels_out_of_a_picture_in_colors_or_of_matlab(tmp_path):
    gray = np.eye(5, dtype=np.uint8) * 255
    Image.fromarray(np.dstack([gray] * 3)).save(tmp_path / "a.png")
    assert kernels.load(str(tmp_path / "a.png")) == pytest.approx(torch.eye(5) / 5)
    Image.fromarray(np.dstack([gray, gray, 0 * gray])).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="must be gray"):
        kernels.load(str(tmp_path / "b.png"))
    np.save(tmp_path / "c.npy", np.ones((7, 7, 5)))
    with pytest.raises(UserError, match="along the first axis"):
        kernels.load(f"{tmp_path / 'c.npy'}:2")


@pytest.mark.parametrize("kind", [">f8", ">f4", np.longdouble, np.float16])
def test_any_kind_of_number(kind, clean):
    model = model_for("inpaint")
    given = measured(model.problem, clean)
    x, _ = model.reconstruct(**given)
    again, _ = model.reconstruct(**given | {"y": given["y"].astype(kind)})
    assert again == pytest.approx(x, abs=2e-3)


def test_floating_point_tiff_is_a_measurement_as_it_is(clean, tmp_path, capsys):
    """Noise below zero, other units, and pixels that are NaN."""
    model = model_for("inpaint")
    y = 255 * measured(model.problem, clean)["y"] - 1
    given = np.where(np.random.default_rng(0).random(SIZE) < 0.5, y, np.nan).astype(np.float32)
    io.write_image(tmp_path / "y.tif", given)
    model.save(tmp_path / "model")
    arguments = [
        "reconstruct",
        str(tmp_path / "model"),
        "--measurement",
        str(tmp_path / "y.tif"),
        "--data-range",
        "255",
    ]
    assert cli.main([*arguments, "--out", str(tmp_path / "x.npy")]) == 0
    right, _ = model.reconstruct(given, data_range=255)
    assert np.array_equal(io.read_arrays(tmp_path / "x.npy")["y"], right)
    capsys.readouterr()


def test_a_known_range_is_divided_out(clean):
    model = model_for("csmri")
    given = measured(model.problem, clean)
    y = given.pop("y")
    x, _ = model.reconstruct(y, **given)
    numbers: list[Any] = [4095, np.float32(4095), np.int16(4095)]
    for white in numbers:
        deep, _ = model.reconstruct(4095 * y, data_range=white, **given)
        assert deep == pytest.approx(4095 * x, abs=4.1)


def test_a_masked_array_is_refused(clean):
    """NumPy drops the mask, and what it hides would count as measured."""
    model = model_for("deblur")
    y = measured(model.problem, clean)["y"]
    with pytest.raises(UserError, match="masked array"):
        model.reconstruct(np.ma.masked_array(y, mask=y > 0.5))


@pytest.mark.parametrize(
    ("problem", "change"),
    [
        ("inpaint", lambda given: given | {"y": given["y"] * 255}),
        ("csmri", lambda given: given | {"y": given["y"] * SIZE[0]}),  # an FFT without norm="ortho"
        ("csmri", lambda given: given | {"y": given["y"] * 0.01}),
        ("csmri", lambda given: {key: np.fft.fftshift(value) for key, value in given.items()}),
        ("csmri", lambda given: given | {"mask": np.fft.fftshift(given["mask"])}),
        ("csmri", lambda given: given | {"mask": given["mask"][::-1].copy()}),
        ("csmri", lambda given: given | {"mask": np.ones_like(given["mask"])}),
        ("csmri", lambda given: given | {"mask": np.roll(given["mask"][:, ::-1], 1, 1)}),
        ("csmri", lambda given: given | {"y": given["y"] * np.exp(1j)}),
        ("inpaint", lambda given: given | {"mask": 1 - given["mask"]}),
        ("ct", lambda given: {"y": given["y"].T}),
        ("ct", lambda given: given | {"theta": np.deg2rad(given["theta"])}),
    ],
    ids=[
        "0 to 255",
        "no ortho",
        "dim",
        "both centered",
        "mask centered",
        "mask upside down",
        "mask of more",
        "mask mirrored",
        "a phase",
        "mask inverted",
        "transposed",
        "radians",
    ],
)
def test_another_unit_or_convention_is_told(problem, change, clean):
    model = model_for(problem)
    given = measured(model.problem, clean)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.reconstruct(**given)
    with pytest.warns(DataWarning, match=r"data_range|centered=true|its mask|not real|inverted|transpose|radians"):
        model.reconstruct(**change(given))


def test_centered_k_space_gives_the_same_picture(clean):
    model = model_for("csmri")
    given = measured(model.problem, clean)
    x, _ = model.reconstruct(**given)
    shifted: dict[str, Any] = {key: np.fft.fftshift(value) for key, value in given.items()}
    again, _ = model.override({"centered": True}).reconstruct(**shifted)
    assert np.array_equal(again, x)


def test_files_of_centered_k_space_are_read_as_they_are_written(clean, tmp_path):
    problem = problems.make("csmri", {"centered": True})
    (sample,) = samples.measure(problem, ["a"], [clean])
    samples.save(tmp_path / "a.npz", problem, sample)
    again = samples.read(tmp_path / "a.npz", problem, clean)
    assert torch.equal(again.y, sample.y)
    assert torch.equal(again.operator.mask.squeeze(), sample.operator.mask.squeeze())
    middle = tuple(n // 2 for n in SIZE)
    assert np.abs(io.read_arrays(tmp_path / "a.npz")["y"]).argmax() == np.ravel_multi_index(middle, SIZE)


def test_a_centered_mask_file_serves_for_simulation(clean, tmp_path):
    mask = np.fft.fftshift(masks.radial(SIZE, 0.3, torch.Generator().manual_seed(0)).numpy())
    np.save(tmp_path / "mask.npy", mask)
    operator = problems.make("csmri", {"mask": str(tmp_path / "mask.npy"), "centered": "true"}).operator(
        SIZE, 1, torch.Generator()
    )
    assert operator.mask[0, 0] == 1
    assert np.array_equal(np.fft.fftshift(operator.mask.numpy()), mask)


def test_missing_pixels_may_be_nan(clean):
    model = model_for("inpaint")
    given = measured(model.problem, clean)
    x, _ = model.reconstruct(**given)
    holes = np.where(given["mask"] == 0, np.nan, given["y"]).astype(np.float32)
    alone, _ = model.reconstruct(holes)
    both, _ = model.reconstruct(holes, mask=given["mask"])
    assert np.array_equal(alone, x)
    assert np.array_equal(both, x)
    with pytest.raises(UserError, match="NaN"):  # a pixel that the mask calls known
        model.reconstruct(np.full_like(holes, np.nan), mask=given["mask"])


def test_a_full_mask_reconstructs(clean):
    for name, settings in (("csmri", {"ratio": 1.0}), ("inpaint", {"missing": 0.0})):
        model = model_for(name, **settings)
        x, info = model.reconstruct(**measured(model.problem, clean))
        assert info.status in ("converged", "precision")
        assert x == pytest.approx(clean[0, 0].numpy(), abs=0.05)


@pytest.mark.parametrize("name", ["csmri", "inpaint"])
def test_a_mask_out_of_a_jpeg_is_refused(name, clean, tmp_path):
    given = measured(problems.make(name), clean)
    Image.fromarray(given["mask"].astype(np.uint8) * 255).save(tmp_path / "mask.jpg")
    with pytest.raises(UserError, match="save masks without loss"):
        problems.make(name, {"mask": str(tmp_path / "mask.jpg")}).operator(SIZE, 1, torch.Generator())
    Image.fromarray(given["mask"].astype(np.uint8) * 255).save(tmp_path / "mask.png")
    operator = problems.make(name, {"mask": str(tmp_path / "mask.png")}).operator(SIZE, 1, torch.Generator())
    assert np.array_equal(operator.mask.numpy(), given["mask"])


@pytest.mark.parametrize("name", ["csmri", "inpaint"])
def test_a_mask_in_colors_is_refused(name, tmp_path):
    """Red on white, every pixel has the same red."""
    colors = np.full((*SIZE, 3), 255, np.uint8)
    colors[4:9, 4:9, 1:] = 0
    Image.fromarray(colors).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=r"mask\.png must be gray; it has colors"):
        problems.make(name, {"mask": str(tmp_path / "mask.png")}).operator(SIZE, 1, torch.Generator())


def test_measurements_and_images_are_paired_by_name(clean, tmp_path):
    """`scan` and `scan.png` sort differently with and without their suffixes."""
    problem = problems.make("inpaint")
    names = ["scan.png", "scan"]
    truths = [clean, clean.flip(-1)]
    for sample in samples.measure(problem, names, truths):
        samples.save(tmp_path / f"{sample.name}.npz", problem, sample)
    for sample, name, truth in zip(samples.read_all(tmp_path, problem, names, truths), names, truths, strict=True):
        assert sample.name == name
        assert torch.equal(sample.y, sample.operator.A(truth))
    with pytest.raises(UserError, match="lacks the measurement of other"):
        samples.read_all(tmp_path, problem, ["scan", "other"], truths)
    with pytest.raises(UserError, match=r"scan\.png is the measurement of no image"):
        samples.read_all(tmp_path, problem, ["scan"], truths[:1])


def test_a_gray_model_takes_the_luminance_of_a_photograph(bundle, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    colors = (np.random.default_rng(0).random((32, 32, 3)) * 255).astype(np.uint8)
    Image.fromarray(colors).save(folder / "a.jpg", quality=95)
    assert cli.main(["evaluate", str(bundle), "--images", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert io.read_image(tmp_path / "out" / "a.png").shape == (32, 32)
    for option, shape in (([], (32, 32)), (["--color"], (3, 32, 32))):
        out = tmp_path / f"y{len(option)}"
        assert cli.main(["simulate", "inpaint", "--images", str(folder), "--out", str(out), *option]) == 0
        assert io.read_arrays(out / "a.npz")["y"].shape == shape
    capsys.readouterr()


def test_the_command_line_scales(bundle, photographs, tmp_path, capsys):
    """Hounsfield units in a window; a measurement in units of 255, told and then divided out."""
    folder = tmp_path / "in"
    folder.mkdir()
    hounsfield = (io.read_image(sorted(photographs.iterdir())[0]) * 2000 - 1000).astype(np.int16)
    np.save(folder / "scan.npy", hounsfield)
    simulate = ["simulate", "csmri", "--images", str(folder), "--out", str(tmp_path)]
    assert cli.main(simulate) == 1
    assert "nothing says which is white" in capsys.readouterr().err
    assert cli.main([*simulate, "--scaling=-1000,1000"]) == 0
    arrays = io.read_arrays(tmp_path / "scan.npz")
    np.savez(tmp_path / "y.npz", y=arrays["y"] * 255, mask=arrays["mask"])
    reconstruct = ["reconstruct", str(bundle), "--measurement", str(tmp_path / "y.npz")]
    assert cli.main([*reconstruct, "--out", str(tmp_path / "x.npy")]) == 0
    assert "elder: warning: the picture behind the measurement reaches" in capsys.readouterr().err
    assert cli.main([*reconstruct, "--out", str(tmp_path / "x.npy"), "--data-range", "255"]) == 0
    assert capsys.readouterr().err == ""
    assert 100 < io.read_arrays(tmp_path / "x.npy")["y"].max() < 400


def test_a_picture_that_does_not_explain_its_measurement_is_told(clean):
    model = model_for("deblur", noise=0.01)
    given = measured(model.problem, clean)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, info = model.reconstruct(**given)
    assert np.max(info.misfit) < 0.1
    flat = replace(model, hyperparameters=Hyperparameters(1e4, 0.1, 1e-4, 1e-5, 500))
    with pytest.warns(DataWarning, match="explains the measurement badly"):
        flat.reconstruct(**given)


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 4095)])
def test_integers_of_a_picture_are_in_the_units_that_are_given(dtype, white, clean, tmp_path, capsys):
    """Eight bits, and twelve in sixteen: as 0 to `white`, and not divided a second time."""
    model = model_for("denoise", noise=0.05)
    model.save(tmp_path / "model")
    y = np.round(clean[0, 0].numpy() * white).astype(dtype)
    Image.fromarray(y).save(tmp_path / "y.png")
    reconstruct = ["reconstruct", str(tmp_path / "model"), "--measurement", str(tmp_path / "y.png"), "--out"]
    assert cli.main([*reconstruct, str(tmp_path / "x.npy"), "--data-range", str(white)]) == 0
    right, _ = model.reconstruct(y, data_range=white)
    assert np.array_equal(io.read_arrays(tmp_path / "x.npy")["y"], right)
    assert right.max() > 0.7 * white
    assert capsys.readouterr().err == ""
    if dtype is np.uint8:  # without the option, 255 is 1
        assert cli.main([*reconstruct, str(tmp_path / "unit.npy")]) == 0
        assert white * io.read_arrays(tmp_path / "unit.npy")["y"] == pytest.approx(right, abs=0.1)
    capsys.readouterr()


def test_a_transposed_mask_is_refused(clean):
    """By its size; of a square picture, by the pixels that it says are missing."""
    model = model_for("inpaint", missing=0.5)
    given = measured(model.problem, clean)
    with pytest.raises(UserError, match="the mask, 36x32, is transposed against the measurement"):
        model.reconstruct(given["y"], mask=given["mask"].T)
    y, mask = given["y"][:, :32], given["mask"][:, :32]
    for absent in (y, np.where(mask > 0, y, np.nan)):
        with pytest.raises(UserError, match="the mask, 32x32, is transposed against the measurement"):
            model.reconstruct(absent, mask=mask.T)
        model.reconstruct(absent, mask=mask)
    # A picture that is there as a whole fits neither way, and every mask may leave pixels out.
    model.reconstruct(clean[0, 0, :, :32].numpy(), mask=mask.T)


def test_a_mask_of_matlab(tmp_path):
    """Logical arrays: format 5 gives them as numbers of eight bits."""
    mask = np.arange(30).reshape(5, 6) % 3 == 0
    scipy.io.savemat(tmp_path / "mask.mat", {"mask": mask})
    assert io.read_arrays(tmp_path / "mask.mat")["mask"].dtype == np.uint8
    assert torch.equal(masks.load(tmp_path / "mask.mat"), torch.from_numpy(mask).float())


def test_the_offset_of_a_sinogram_is_one_number(clean):
    problem = problems.make("ct", {"angles": 8, "noise": 0.0})
    given = measured(problem, clean)
    y = torch.from_numpy(given.pop("y"))[None, None]
    for offset in (0.5, np.array([0.5]), np.array([[0.5]])):
        assert problem.bind(y, **given | {"offset": offset}).check(y) is None
    for offset in ([0.5, 0.7], [], np.nan):
        with pytest.raises(UserError, match=r"offset=.* must be one finite number of detectors"):
            problem.bind(y, **given | {"offset": np.array(offset)})


@pytest.mark.parametrize("how", ["not finite", "worse than black"])
def test_a_reconstruction_that_diverges_writes_no_file(how, clean, tmp_path, capsys, monkeypatch):
    model = model_for("denoise", noise=0.05)
    model.save(tmp_path / "model")
    np.save(tmp_path / "y.npy", clean[0, 0].numpy())
    _, right = model.reconstruct(clean[0, 0].numpy())
    status, misfit = (Status.NOT_FINITE, 0.1) if how == "not finite" else (Status.MAX_STEPS, 40.0)
    ended = replace(right, status=status, misfit=misfit)
    monkeypatch.setattr(Model, "reconstruct", lambda self, y, **given: (y, ended))
    arguments = ["reconstruct", str(tmp_path / "model"), "--measurement", str(tmp_path / "y.npy"), "--out"]
    assert cli.main([*arguments, str(tmp_path / "x.png")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "y.npy: diverged" in line
    assert "nothing is written" in line
    assert not (tmp_path / "x.png").exists()
    # One that was only stopped early is written, and told.
    ended = replace(right, status=Status.MAX_STEPS, misfit=0.5)
    assert cli.main([*arguments, str(tmp_path / "x.png")]) == 0
    assert "raise max_steps" in capsys.readouterr().err
    assert (tmp_path / "x.png").exists()
