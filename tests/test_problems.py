"""Problems, masks and settings."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.io
import torch

from elder import UserError, files, problems
from elder.measurements import measure
from elder.problems import masks


@pytest.mark.parametrize("size", [(64, 64), (48, 65), (33, 20)], ids=str)
@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.5])
@pytest.mark.parametrize("kind", masks.MASKS)
def test_masks_sample_the_share_asked_for_and_the_zero_frequency(kind, ratio, size, rng):
    mask = masks.MASKS[kind](size, ratio, rng)
    assert mask.shape == size
    assert set(mask.unique().tolist()) == {0, 1}
    assert mask[0, 0] == 1
    # A whole row, or a line through the centre, is the least that can be added.
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
        files.write_image(path, mask.astype(float))
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
        ({"angles": 30}, "unknown setting 'angles' of csmri: it takes mask, noise, ratio, seed"),
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
