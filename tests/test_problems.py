"""Problems, masks and settings."""

from __future__ import annotations

import importlib
import math
import re
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from conftest import ROOT

from elder import UserError, io, problems
from elder.errors import DataWarning
from elder.evaluation.quality import psnr
from elder.model.model import load
from elder.problems import kernels, masks, samples
from elder.problems.samples import measure, measurements
from elder.problems.superres import shifted_bicubic
from elder.testing import check_operator


@pytest.mark.parametrize("size", [(64, 64), (48, 65), (33, 20)], ids=str)
@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.5])
@pytest.mark.parametrize("kind", masks.MASKS)
def test_masks_sample_the_share_asked_for_and_the_zero_frequency(kind, ratio, size, rng):
    mask = masks.MASKS[kind](size, ratio, rng)
    assert mask.shape == size
    assert set(mask.unique().tolist()) == {0, 1}
    assert mask[0, 0] == 1
    # A whole row, or a line through the center, is the least that can be added.
    assert abs(float(mask.mean()) - ratio) <= 1.1 * max(size) / (size[0] * size[1]) + 0.01


@pytest.mark.parametrize("kind", masks.MASKS)
def test_masks_differ_by_draw_and_repeat_by_seed(kind):
    def draw(seed: int) -> torch.Tensor:
        return masks.MASKS[kind]((40, 36), 0.3, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_measurements_repeat_by_seed(rng):
    images = [torch.rand((1, 1, 20, 24), generator=rng) for _ in range(2)]
    problem = problems.make("csmri", {"noise": 0.05, "seed": 3})
    first, again = (measure(problem, ["a", "b"], images) for _ in range(2))
    other = measure(problem.override({"seed": 4}), ["a", "b"], images)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.y, b.y)
        assert not torch.equal(a.y, c.y)


@pytest.mark.parametrize("settings", [{"noise": 0.05}, {"noise": 0.05, "seed": -3}, {"mask": "random"}])
def test_validation_and_test_draw_their_own_noise_and_masks(settings, rng):
    image = torch.rand((1, 1, 20, 24), generator=rng)
    problem = problems.make("csmri", settings)
    test, again, validation = (next(measurements(problem, ["a"], [image], stream=stream)) for stream in (0, 0, 1))
    assert torch.equal(test.y, again.y)
    assert not torch.equal(test.y, validation.y)


def test_noise_has_the_standard_deviation_asked_for(rng):
    x = torch.rand((1, 1, 128, 128), generator=rng)
    operator, y = problems.make("csmri", {"noise": 0.1, "ratio": 0.5}).simulate(x, rng)
    noise = (y - operator.A(x))[operator.mask.expand_as(y) > 0]
    assert float(noise.real.std()) == pytest.approx(0.1, rel=0.05)
    assert float(noise.imag.std()) == pytest.approx(0.1, rel=0.05)
    assert (y[operator.mask.expand_as(y) == 0] == 0).all()


def test_the_initial_guess_of_a_full_mask_is_the_picture(rng):
    x = torch.rand((1, 1, 10, 12), generator=rng)
    operator, y = problems.make("csmri", {"mask": "random", "ratio": 1.0}).simulate(x, rng)
    torch.testing.assert_close(problems.make("csmri").initial(operator, y), x)


@pytest.mark.parametrize("suffix", [".npy", ".mat", ".png"])
def test_a_mask_from_a_file(suffix, tmp_path, rng):
    mask = (torch.rand((10, 12), generator=rng) < 0.5).numpy().astype(np.uint8)
    mask[0, 0] = 1
    path = tmp_path / f"mask{suffix}"
    if suffix == ".npy":
        np.save(path, mask)
    elif suffix == ".mat":
        scipy.io.savemat(path, {"mask_matrix": mask})
    else:
        io.write_image(path, mask.astype(float))
    problem = problems.make("csmri", {"mask": str(path)})
    operator, _ = problem.simulate(torch.rand((1, 1, 10, 12), generator=rng), rng)
    assert np.array_equal(operator.mask.numpy(), mask)
    with pytest.raises(UserError, match="10x12 but the image is 12x12"):
        problem.simulate(torch.rand((1, 1, 12, 12), generator=rng), rng)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": "high"}, "ratio='high'"),
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"angles": 30}, "unknown setting 'angles' of csmri: it takes centered, mask, noise, ratio, seed"),
        ({"mask": "spiral"}, "mask=spiral"),
        ({"seed": 1.5}, "seed=1.5"),
    ],
)
def test_bad_settings_name_themselves(settings, message):
    with pytest.raises(UserError, match=message):
        problems.make("csmri", settings)


def test_settings_from_a_command_line_are_typed():
    problem = problems.make("csmri", {"ratio": "0.25", "seed": "7", "noise": "0"})
    assert (problem.ratio, problem.seed, problem.noise) == (0.25, 7, 0.0)


def test_an_unknown_problem_is_named():
    with pytest.raises(UserError, match="unknown problem 'mri': there are csmri"):
        problems.make("mri")


@pytest.fixture
def documented(tmp_path, monkeypatch):
    """The module that docs/own-problem.md tells to write, importable."""
    text = (ROOT / "docs" / "own-problem.md").read_text()
    source = text.split("```python\n")[1].split("```")[0]
    assert len([line for line in source.splitlines() if line.strip()]) <= 20
    (tmp_path / "wide.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("wide")
    sys.modules.pop("wide")


class TestAProblemOfOnesOwn:
    def test_it_obeys_the_laws(self, documented, rng):
        check_operator(documented.Pairs(), torch.rand((2, 1, 9, 12), generator=rng, dtype=torch.float64))

    def test_it_joins_by_its_dotted_path(self, documented, small_model, tmp_path, rng):
        problem = problems.make("wide", {"class": "wide.Wide", "noise": 0.01})
        m = measure(problem, ["a"], [torch.rand((1, 1, 12, 16), generator=rng)])[0]
        assert m.y.shape == (1, 1, 12, 8)
        replace(small_model, problem=problem).save(tmp_path / "bundle")
        with pytest.raises(UserError, match=r"name it by own_code='wide\.Wide', or --own-code wide\.Wide"):
            load(tmp_path / "bundle")
        again = load(tmp_path / "bundle", own_code="wide.Wide")
        assert again.problem == problem
        x, _ = again.reconstruct(m.y.numpy())
        assert x.shape == m.truth.shape

    @pytest.mark.parametrize(
        ("name", "path", "message"),
        [
            ("wide", "nowhere.Wide", "can't be imported"),
            ("wide", "wide.Narrow", "can't be imported"),
            ("wide", "Wide", "must be the dotted path of a subclass"),
            ("wide", "wide.Pairs", "must be the dotted path of a subclass"),
            ("broad", "wide.Wide", "its name is 'wide', not 'broad'"),
        ],
    )
    def test_a_wrong_path_is_named(self, name, path, message, documented):
        with pytest.raises(UserError, match=message):
            problems.make(name, {"class": path})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", problems.PROBLEMS)
class TestEveryProblem:
    def images(self, channels: int, rng: torch.Generator) -> list[torch.Tensor]:
        return [torch.rand((1, channels, 36, 28), generator=rng) for _ in range(2)]

    def test_a_measurement_comes_back_from_disk(self, name, channels, rng, tmp_path):
        problem, images = problems.make(name), self.images(channels, rng)
        for m in measure(problem, ["a", "b"], images):
            samples.save(tmp_path / f"{m.name}.npz", problem, m)
            again = samples.read(tmp_path / f"{m.name}.npz", problem, m.truth)
            assert torch.equal(again.y, m.y)
            torch.testing.assert_close(again.operator.A(m.truth), m.operator.A(m.truth))

    def test_the_initial_guess_is_a_picture_near_the_truth(self, name, channels, rng):
        problem = problems.make(name)
        x = torch.nn.functional.interpolate(self.images(channels, rng)[0][..., ::6, ::6], size=(36, 28), mode="bicubic")
        operator, y = problem.simulate(x.clamp(0, 1), rng)
        start = problem.initial(operator, y)
        assert start.shape == x.shape
        assert float(psnr(start, x.clamp(0, 1))) > float(psnr(torch.full_like(x, 0.5), x.clamp(0, 1)))


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_a_model_reconstructs_every_problem(name, rng, small_model):
    model = replace(small_model, problem=problems.make(name))
    m = measure(model.problem, ["a"], [torch.rand((1, 1, 36, 28), generator=rng)])[0]
    x, info = model.reconstruct(m.y.numpy(), **model.problem.arguments(m.operator))
    assert x.shape == (1, 1, 36, 28)
    assert np.isfinite(x).all()
    assert info.status == ["converged"]


def test_inpainting_without_noise_keeps_the_pixels_that_are_there(small_model, rng):
    model = replace(small_model, problem=problems.make("inpaint", {"missing": 0.3}))
    m = measure(model.problem, ["a"], [torch.rand((1, 1, 20, 18), generator=rng)])[0]
    x, _ = model.reconstruct(m.y, mask=m.operator.mask.numpy())
    known = m.operator.mask > 0
    assert torch.equal(x[known], m.truth[known])


@pytest.mark.parametrize("hole", [0.0, 1.0, 255.0, -9999.0, math.nan])
@pytest.mark.parametrize("white", [1.0, "auto"])
def test_what_lies_at_missing_pixels_does_not_matter(hole, white, small_model, rng):
    """The photograph itself, a painted color, a number that stands for nothing."""
    model = replace(small_model, problem=problems.make("inpaint", {"noise": 0.02}))
    truth = torch.rand((1, 1, 20, 18), generator=rng)
    mask = (torch.rand((20, 18), generator=rng) < 0.6).numpy()
    expected, info = model.reconstruct(torch.where(torch.tensor(mask), truth, 0.0).numpy(), mask=mask, data_range=white)
    for other in (truth.numpy(), np.where(mask, truth.numpy(), np.float32(hole))):
        found, told = model.reconstruct(other, mask=mask, data_range=white)
        assert np.array_equal(found, expected)
        assert (told.misfit, told.steps) == (info.misfit, info.steps)


def test_a_pixel_that_is_missing_in_one_color_is_missing_in_all(rng):
    truth = torch.rand((1, 3, 20, 18), generator=rng)
    y = truth.clone()
    y[:, 1, 4:9] = math.nan
    with pytest.warns(DataWarning, match="NaN in some of their colors only"):
        operator, found = problems.make("inpaint").accept(y)
    assert not bool(operator.mask[..., 4:9, :].any())
    assert torch.equal(found, operator.A(truth))


def test_a_measurement_without_a_pixel_is_refused():
    y = torch.zeros(2, 1, 8, 9)
    y[1] = math.nan
    with pytest.raises(UserError, match="nothing is left to inpaint from"):
        problems.make("inpaint").accept(y)


def test_k_space_where_the_mask_does_not_sample_does_not_matter(small_model, rng):
    m = measure(small_model.problem, ["a"], [torch.rand((1, 1, 20, 18), generator=rng)])[0]
    whole = torch.fft.fft2(m.truth, norm="ortho")
    mask = m.operator.mask.numpy()
    expected, info = small_model.reconstruct(m.y, mask=mask)
    found, told = small_model.reconstruct(whole, mask=mask)
    assert torch.allclose(found, expected, atol=1e-5)
    assert told.misfit == pytest.approx(info.misfit, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "argument", "shapes"),
    [
        ("superres", "kernel", [(2, 1, 5, 5), (1, 3, 5, 5)]),
        ("deblur", "kernel", [(3, 1, 5, 5)]),
        ("inpaint", "mask", [(2, 1, 20, 18), (1, 3, 20, 18)]),
        ("csmri", "mask", [(2, 1, 20, 18), (1, 3, 20, 18)]),
    ],
)
def test_an_argument_for_other_images_than_those_of_the_measurement_is_refused(name, argument, shapes, small_model):
    model = replace(small_model, problem=problems.make(name))
    y = np.ones((20, 18), np.complex64 if name == "csmri" else np.float32)
    for shape in shapes:
        with pytest.raises(UserError, match=rf"{argument} (is|must be).*{re.escape(str(shape))}"):
            model.reconstruct(y, **{argument: np.ones(shape)})


def test_a_measurement_file_knows_its_scale(small_model, rng):
    """A file that holds none is of the problem's scale."""
    model = replace(small_model, problem=problems.make("superres", {"kernel": "gaussian"}))
    truth = torch.rand((1, 1, 54, 54), generator=rng)
    m = measure(model.problem.override({"scale": 3}), ["a"], [truth])[0]
    arguments = model.problem.arguments(m.operator)
    assert arguments["scale"] == 3
    x, info = model.reconstruct(m.y, **arguments)
    assert x.shape == truth.shape
    assert info.misfit[0] < 0.1
    del arguments["scale"]
    assert model.reconstruct(m.y, **arguments)[0].shape == (1, 1, 36, 36)
    for wrong in (5, 2.5, (2, 3)):
        with pytest.raises(UserError, match="must be 2, 3 or 4"):
            model.reconstruct(m.y, **arguments, scale=wrong)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("ct", {"angles": 9, "arc": 90.0, "detectors": 30, "offset": 1.0}, {"theta", "offset"}),
        ("superres", {"kernel": "gaussian", "scale": 3, "seed": 2}, {"kernel", "scale"}),
        ("deblur", {"kernel": "motion", "noise": 0.1}, set()),
        ("csmri", {"mask": "random", "ratio": 0.3, "centered": True}, set()),
        ("inpaint", {"missing": 0.3}, set()),
    ],
)
def test_settings_by_hand_say_the_arguments_that_are_not_drawn(name, settings, said):
    assert problems.make(name, settings).said_by(settings) == said


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 5)])
def test_bicubic_interpolation_of_few_pixels_is_that_of_their_periodic_continuation(size, rng):
    y = torch.rand((1, 1, *size), generator=rng)
    many = shifted_bicubic(y.tile(8, 8), 3)
    torch.testing.assert_close(shifted_bicubic(y, 3).tile(8, 8), many)


def test_bicubic_stands_where_decimation_took_its_pixels():
    """On a smooth picture the guess agrees with the truth; half a pixel of the small grid to the side it does not."""
    rows, cols = torch.meshgrid(torch.arange(96.0), torch.arange(72.0), indexing="ij")
    x = (torch.sin(2 * torch.pi * rows / 96) + torch.cos(2 * torch.pi * cols / 72)).view(1, 1, 96, 72)
    for scale in (2, 3, 4):
        guess = shifted_bicubic(x[..., ::scale, ::scale], scale)
        torch.testing.assert_close(guess[..., ::scale, ::scale], x[..., ::scale, ::scale], rtol=0, atol=1e-5)
        assert float((guess - x).abs().max()) < 0.03
        wrong = torch.nn.functional.interpolate(x[..., ::scale, ::scale], size=x.shape[-2:], mode="bicubic")
        assert float((wrong - x).abs().max()) > 0.05


def test_kernels_are_not_negative_and_sum_to_one(rng):
    for kernel in (kernels.gaussian(), kernels.motion(rng), kernels.motion(rng)):
        assert kernel.shape == (25, 25)
        assert float(kernel.min()) >= 0
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-5)
    first, again = (kernels.motion(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, kernels.motion(torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("form", [".npy", ".mat", "mat of version 7.3", ".png"])
def test_kernels_from_files(form, tmp_path):
    stack = [np.random.default_rng(i).random((5 + 2 * i, 7)) for i in range(3)]
    path = tmp_path / f"kernels{'.mat' if 'mat' in form else form}"
    if form == ".npy":
        stack = [stack[0]] * 3
        np.save(path, np.stack(stack))
    elif form == ".mat":
        cells = np.empty((1, 3), dtype=object)
        cells[0] = stack
        scipy.io.savemat(path, {"kernels": cells})
    elif form == ".png":
        stack = [np.round(stack[0] * 255) / 255]
        io.write_image(path, stack[0])
    else:
        with h5py.File(path, "w", userblock_size=512) as file:
            cells = [file.create_dataset(f"#refs#/{i}", data=kernel.T) for i, kernel in enumerate(stack)]
            file.create_dataset("kernels", data=np.array([[c.ref] for c in cells], dtype=h5py.ref_dtype))
        # MATLAB's header in front of the HDF5 file: a text, then version 0x0200 and the byte order.
        with path.open("r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    for index, expected in enumerate(stack):
        found = kernels.load(f"{path}:{index}").numpy()
        assert found == pytest.approx(expected / expected.sum(), rel=1e-5)
    with pytest.raises(UserError, match="counted from 0"):
        kernels.load(f"{path}:9")


def test_a_kernel_in_a_color_file_is_gray(tmp_path):
    kernel = np.random.default_rng(0).integers(1, 255, (5, 7), np.uint8)
    io.write_image(tmp_path / "kernel.png", np.stack([kernel / 255] * 3, -1))
    assert kernels.load(str(tmp_path / "kernel.png")).numpy() == pytest.approx(kernel / kernel.sum(), rel=1e-5)
    io.write_image(tmp_path / "kernel.png", np.stack([kernel / 255] * 2 + [kernel / 510], -1))
    with pytest.raises(UserError, match=r"kernel\.png must be gray; it has colors"):
        kernels.load(str(tmp_path / "kernel.png"))


@pytest.mark.parametrize(("share", "angles"), [(0.5, 30), (1 / 3, 20), (1e-3, 1), (2.0, 60)])
def test_patches_are_seen_at_as_many_angles_per_pixel(share, angles):
    assert problems.make("ct", {"angles": 60}).on_patches(share) == problems.make("ct", {"angles": angles})


@pytest.mark.parametrize("name", ["csmri", "inpaint"])
def test_a_mask_from_a_file_has_one_size(name, tmp_path):
    mask = np.zeros((20, 24), np.uint8)
    mask[0] = 1
    np.save(tmp_path / "mask.npy", mask)
    problem = problems.make(name, {"mask": str(tmp_path / "mask.npy")})
    problem.check_size((20, 24))
    with pytest.raises(UserError, match=r"mask\.npy is 20x24 but the image is 48x48"):
        problem.check_size((48, 48))
    problems.make(name).check_size((48, 48))


def lines_drawn_whole(size: tuple[int, int], lines: int, offset: float) -> torch.Tensor:
    """The mask of so many lines, each point of a line tested by itself."""
    mask = torch.zeros(size)
    for angle in offset + torch.arange(lines, dtype=torch.float64) * math.pi / lines:
        for reach in torch.arange(-max(size), max(size) + 1, dtype=torch.float64) / 2:
            row, col = (round(float(n // 2 + reach * f)) for n, f in zip(size, (angle.sin(), angle.cos()), strict=True))
            if 0 <= row < size[0] and 0 <= col < size[1]:
                mask[row, col] = 1
    return torch.fft.ifftshift(mask)


@pytest.mark.parametrize(("size", "ratio"), [((13, 9), 0.2), ((8, 12), 0.45), ((11, 11), 0.7)])
def test_a_radial_mask_has_the_lines_whose_share_is_nearest(size, ratio, rng):
    state = rng.get_state()
    found = masks.radial(size, ratio, rng)
    offset = float(torch.rand((), generator=rng.set_state(state), dtype=torch.float64)) * math.pi
    drawn = [lines_drawn_whole(size, lines, offset) for lines in range(1, 24)]
    nearest = min(abs(float(mask.mean()) - ratio) for mask in drawn)
    assert abs(float(found.mean()) - ratio) == nearest
    assert any(torch.equal(found, mask) for mask in drawn)


def test_a_share_that_radial_lines_do_not_reach_is_told(rng):
    assert float(masks.radial((64, 64), 0.75, rng).mean()) == pytest.approx(0.75, abs=0.02)
    with pytest.warns(DataWarning, match=r"ratio=1: radial lines sample 0\.\d\d of 64x64 at most"):
        masks.radial((64, 64), 1.0, rng)


def test_a_motion_kernel_is_the_damped_walk_that_it_says(rng):
    state = rng.get_state()
    found = kernels.motion(rng, 15)
    rng.set_state(state)
    push, velocity, path = torch.randn(256, 2, generator=rng, dtype=torch.float64), torch.zeros(2).double(), []
    for k in range(256):
        velocity = 0.97 * velocity + 0.1 * push[k] if k else velocity
        path.append(path[-1] + velocity if k else velocity)
    path = torch.stack(path)
    path = path - (path.amax(0) + path.amin(0)) / 2
    path = path / path.abs().max() * (0.35 + 0.6 * float(torch.rand((), generator=rng, dtype=torch.float64))) * 6 + 7
    # Bilinear weights keep the mean of the points.
    middle = torch.stack([(found.sum(1 - axis) * torch.arange(15)).sum() for axis in (0, 1)])
    torch.testing.assert_close(middle, path.mean(0).float(), rtol=1e-4, atol=1e-4)
    assert bool((found[path[:, 0].round().long(), path[:, 1].round().long()] > 0).all())
