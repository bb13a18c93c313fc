"""Validation and tuning solve for several images at once, and find what they find one by one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elder import io, problems
from elder.backend import Compute
from elder.io import to_tensor
from elder.model.model import Hyperparameters, Model
from elder.problems.samples import Sample, batches, measure
from elder.training.tune import trial_of
from elder.training.validation import validate
from pipeline.pictures.duplicates import Picture
from stages.prepare import spread

# One row for each kind of operator and of argument: masks and kernels an image, one for all, none, and angles.
PROBLEMS: list[tuple[str, dict[str, Any]]] = [
    ("csmri", {"mask": "random", "ratio": 0.4}),
    ("csmri", {"mask": "radial", "ratio": 0.4, "centered": True}),
    ("deblur", {"kernel": "gaussian"}),
    ("superres", {"scale": 2, "kernel": "motion"}),
    ("inpaint", {"missing": 0.3, "noise": 0.0}),
    ("inpaint", {"missing": 0.3, "noise": 0.05}),
    ("denoise", {"noise": 0.1}),
    ("ct", {"angles": 12}),
]


@pytest.fixture(scope="module")
def images(photographs: Path) -> list[torch.Tensor]:
    return [to_tensor(io.read_image(path)) for path in io.list_sources(photographs)]


def measured(
    name: str, settings: Mapping[str, Any], images: list[torch.Tensor]
) -> tuple[problems.Problem, list[Sample]]:
    problem = problems.make(name, settings)
    return problem, measure(problem, [str(i) for i in range(len(images))], images)


@pytest.mark.parametrize(("name", "settings"), PROBLEMS)
def test_a_batch_is_its_images_one_by_one(name, settings, images):
    problem, samples = measured(name, settings, images[:3])
    ((operator, y, truth),) = batches(problem, samples, 3)
    assert torch.equal(y, torch.cat([s.y for s in samples]))
    assert torch.equal(truth, torch.cat([s.truth for s in samples]))
    for joined, each in (
        (operator.A(truth), [s.operator.A(s.truth) for s in samples]),
        (operator.AT(y), [s.operator.AT(s.y) for s in samples]),
        (problem.initial(operator, y), [problem.initial(s.operator, s.y) for s in samples]),
    ):
        torch.testing.assert_close(joined, torch.cat(each), rtol=1e-5, atol=1e-5)


def test_groups_keep_the_order_and_what_differs_is_apart(images):
    """At most three at once; another size or other angles begin a new group."""
    mixed = [*images[:4], *(image[..., :32, :32] for image in images[:2])]
    problem, samples = measured("inpaint", {}, mixed)
    groups = list(batches(problem, samples, 3))
    assert [len(truth) for _, _, truth in groups] == [3, 1, 2]
    flat = [image for _, _, truth in groups for image in truth]
    assert all(torch.equal(image, sample.truth[0]) for image, sample in zip(flat, samples, strict=True))
    ct, few = measured("ct", {"angles": 6}, images[:2])
    many = measured("ct", {"angles": 7}, images[2:3])[1]
    scans = list(batches(ct, [*few, *many], 3))
    assert [len(truth) for *_, truth in scans] == [2, 1]
    assert scans[0][0] is few[0].operator  # whose matrix took long to make


def test_a_black_picture_raises_no_score(small_model, images):
    """Its initial guess is exact, so that it needs no reconstruction; see `quality.judged`."""
    problem, samples = measured("csmri", {"ratio": 0.4}, [*images[:2], torch.zeros_like(images[0])])
    model = replace(
        small_model,
        problem=problem,
        hyperparameters=replace(small_model.hyperparameters, max_steps=5),
        validation_batch=2,
    )
    assert validate(model, samples).psnr == pytest.approx(validate(model, samples[:2]).psnr, abs=1e-3)
    whole, without = trial_of(model, samples), trial_of(model, samples[:2])
    assert (whole.psnr, whole.peak_psnr) == pytest.approx((without.psnr, without.peak_psnr), abs=1e-3)
    assert validate(model, samples[2:]).psnr > 40  # there is no other to be judged by


def test_a_flat_picture_raises_no_score_of_a_trial_at_any_weight(small_model, images):
    """The proximal step that a solve starts from is not its initial guess, and depends on λ."""
    problem, samples = measured(
        "superres", {"noise": 0.0, "kernel": "gaussian"}, [images[0], torch.full_like(images[0], 0.5)]
    )
    for lambda_reg in (0.001, 0.1):
        chosen = replace(small_model.hyperparameters, max_steps=5, lambda_reg=lambda_reg, step=1 / lambda_reg)
        model = replace(small_model, problem=problem, hyperparameters=chosen)
        assert trial_of(model, samples).psnr == pytest.approx(trial_of(model, samples[:1]).psnr, abs=1e-3)


def test_a_batch_of_one_is_the_sample_itself(images):
    problem, samples = measured("csmri", {"ratio": 0.4}, images[:2])
    found = list(batches(problem, iter(samples), 1))
    assert [operator for operator, *_ in found] == [sample.operator for sample in samples]


def test_samples_are_read_group_by_group(images):
    problem, samples = measured("denoise", {}, images[:4])
    read: list[int] = []

    def lazily():
        for number, sample in enumerate(samples):
            read.append(number)
            yield sample

    next(iter(batches(problem, lazily(), 2)))
    assert read == [0, 1, 2]  # the third shows that the group is whole


@pytest.mark.parametrize(("name", "settings"), [PROBLEMS[0], PROBLEMS[3], PROBLEMS[4]])
def test_scores_and_trials_are_the_same(name, settings, images, small_model, monkeypatch):
    """Also the step of the best, which differs between the images, and solves that stop at different steps."""
    problem, samples = measured(name, settings, images[:3])
    chosen = Hyperparameters(0.3, 0.1, 3.0, tol=1e-3, max_steps=60)
    alone = replace(small_model, problem=problem, hyperparameters=chosen)
    together = alone.on(Compute(validation_batch=3))
    solved: list[int] = []
    monkeypatch.setattr(Model, "solve", counted(Model.solve, solved))
    one, other = validate(alone, samples), validate(together, samples)
    assert solved == [1, 1, 1, 3]
    assert other.psnr == pytest.approx(one.psnr, abs=1e-3)
    assert other.converged == one.converged
    ((operator, y, _),) = batches(problem, samples, 3)
    all_at_once = together.solve(operator, y)
    for k, sample in enumerate(samples):
        solution = alone.solve(sample.operator, sample.y)
        torch.testing.assert_close(all_at_once.x[k], solution.x[0], rtol=0, atol=1e-3)
    first, second = trial_of(alone, samples), trial_of(together, samples)
    for field, value in vars(first).items():
        assert getattr(second, field) == pytest.approx(value, rel=1e-3), field


def counted(solve, solved: list[int]):
    def counting(self, operator, y, **options):
        solved.append(len(y))
        return solve(self, operator, y, **options)

    return counting


def test_how_many_at_once_is_a_setting_with_a_default_by_the_device():
    assert Compute().validation_batch == 1
    assert Compute(validation_batch=5).validation_batch == 5
    assert Compute(device="meta").validation_batch == 8


def test_validation_is_capped_evenly():
    """By pictures, not by files: a file may hold many slices."""
    names = iter(range(10))
    pictures = [[Picture(str(next(names)), "validation", "", None) for _ in range(n)] for n in (3, 1, 5, 1)]

    def kept(most: int) -> list[list[str]]:
        return [[picture.name for picture in found if picture] for found in spread(pictures, most)]

    assert kept(4) == [["0", "2"], [], ["5", "7"], []]
    assert [len(found) for found in spread(pictures, 4)] == [3, 1, 5, 1]
    for most in (0, 10, 11):
        assert spread(pictures, most) == pictures
    assert np.diff([int(name) for found in kept(5) for name in found]).tolist() == [2, 2, 2, 2]


def test_a_capped_preparation_writes_what_it_keeps(project):
    """Slices of volumes among them; the other splits are whole."""
    rng = np.random.default_rng(0)
    folder = project.folder / "data" / "raw"
    for split, files in (("train", 1), ("validation", 3), ("test", 1)):
        (folder / split).mkdir()
        for k in range(files):
            np.save(folder / split / f"volume{k}.npy", rng.random((4, 32, 32), dtype=np.float32))
    project.change("prepare", source="folder", split="folders", shorter_side=0, train_scales=[1.0], validation_images=5)
    done = project.run(sys.executable, "-m", "stages.prepare", "--out", "data/prepared")
    assert "validation: 5 of 12 images, by prepare.validation_images" in done.stdout
    written = sorted(path.stem for path in (project.folder / "data" / "prepared" / "validation").glob("*.tif"))
    assert written == ["volume0-0", "volume0-2", "volume1-0", "volume1-3", "volume2-1"]
    manifest = io.read_json(project.folder / "data" / "prepared" / "manifest.json")["images"]
    assert [row["name"] for row in manifest if row["split"] == "validation"] == written
    assert sum(row["split"] != "validation" for row in manifest) == 8


def test_pictures_behind_a_link_are_prepared_with_a_warning(project, tmp_path_factory):
    """DVC does not look behind it."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        folder = tmp_path_factory.mktemp(split)
        np.save(folder / "picture.npy", rng.random((24, 32), dtype=np.float32))
        (project.folder / "data" / "raw" / split).symlink_to(folder)
    project.change("prepare", source="folder", split="folders", shorter_side=0, train_scales=[1.0])
    done = project.run(sys.executable, "-m", "stages.prepare", "--out", "data/prepared")
    assert "data/raw/test is a link to a folder: DVC does not see what changes there" in done.stderr
    assert (project.folder / "data" / "prepared" / "train" / "picture.tif").exists()


def test_validation_is_cut_to_central_squares_and_the_other_splits_are_not(project):
    rng = np.random.default_rng(0)
    pictures = {split: rng.random((24, 32), dtype=np.float32) for split in ("train", "validation", "test")}
    for split, picture in pictures.items():
        folder = project.folder / "data" / "raw" / split
        folder.mkdir()
        np.save(folder / "picture.npy", picture)
    project.change("prepare", source="folder", split="folders", shorter_side=0, train_scales=[1.0], validation_side=16)
    project.run(sys.executable, "-m", "stages.prepare", "--out", "data/prepared")
    pictures["validation"] = pictures["validation"][4:20, 8:24]
    for split, picture in pictures.items():
        written = io.read_image(project.folder / "data" / "prepared" / split / "picture.tif")
        np.testing.assert_allclose(written, picture, atol=1e-6)
    # No larger than the side to which all pictures are shrunk.
    project.change("prepare", shorter_side=12)
    project.run(sys.executable, "-m", "stages.prepare", "--out", "data/prepared")
    assert io.read_image(project.folder / "data" / "prepared" / "validation" / "picture.tif").shape == (12, 12)
