"""Pre-training, tuning and fine-tuning do what they say, and repeat."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from elder import UserError, files, problems, regularizers
from elder.images import Patches, to_tensor
from elder.measurements import Measured, measure
from elder.model import Model, Tuning
from elder.training.checkpoint import Checkpoint
from elder.training.finetune import Finetuning, finetune
from elder.training.pretrain import Pretraining, denoising_psnr, pretrain
from elder.training.tune import tune
from elder.training.validation import Score, validate

DESCRIPTION = {"name": "least_squares", "network": {"name": "dncnn", "channels": 1, "width": 8, "depth": 3}}


def silent(step: int, figures: dict[str, float]) -> None:
    pass


@pytest.fixture(scope="module")
def images(photographs) -> list[torch.Tensor]:
    return [to_tensor(files.read_image(path)) for path in files.list_images(photographs)]


@pytest.fixture(scope="module")
def patches(images) -> Patches:
    return Patches(images[1:], 24, [str(i) for i in range(1, len(images))])


def pretrained(patches: Patches, steps: int) -> regularizers.Energy:
    torch.manual_seed(1)
    energy = regularizers.make(**DESCRIPTION)
    pretrain(energy, patches, Pretraining(steps=steps, batch=8, patch=24, learning_rate=5e-3), silent)
    return energy


@pytest.fixture(scope="module")
def tuned(patches, images) -> tuple[Model, list[Measured]]:
    problem = problems.make("csmri", {"ratio": 0.4, "seed": 5})
    validation = measure(problem, ["brick", "camera"], images[:2])
    start = Tuning(0.1, 0.1, 10.0, tol=1e-4, max_steps=100)
    model = Model(problem, pretrained(patches, 150).eval().requires_grad_(False), start, DESCRIPTION)
    return tune(model, validation, start=start, factors=(3.0, 3.0**0.5))[0], validation


def test_pretraining_denoises(patches, images):
    before = denoising_psnr(pretrained(patches, 1), images[:1], 0.1)
    assert denoising_psnr(pretrained(patches, 150), images[:1], 0.1) > before + 3


def test_pretraining_repeats(patches):
    first, again = (pretrained(patches, 5).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_tuning_finds_no_worse_than_where_it_starts(tuned):
    model, validation = tuned
    start = replace(model, tuning=Tuning(0.1, 0.1, 10.0, tol=1e-4, max_steps=100))
    assert validate(model, validation)[0].psnr >= validate(start, validation)[0].psnr


def test_tuning_leaves_a_weight_alone_that_has_no_part_in_the_minimum(tuned, images):
    """Under a hard constraint the minimiser of λh is that of h."""
    problem = problems.make("inpaint", {"missing": 0.3})
    before, validation = replace(tuned[0], problem=problem), measure(problem, ["brick"], images[:1])
    trials = tune(before, validation, start=before.tuning)[1]
    assert len(trials) >= 3
    assert {trial.weight for trial in trials} == {before.tuning.weight}
    other = replace(before, tuning=replace(before.tuning, weight=3 * before.tuning.weight, tol=1e-5))
    same = replace(before, tuning=replace(before.tuning, tol=1e-5))
    gap = validate(other, validation)[0].psnr - validate(same, validation)[0].psnr
    assert abs(gap) < 0.01


def test_solves_that_converge_come_before_decibels():
    low, high, cut_off = Score(20.0, True), Score(25.0, True), Score(30.0, False)
    assert low.beats(cut_off)
    assert not cut_off.beats(high)
    assert high.beats(low, by=4.9)
    assert not high.beats(low, by=5.1)


def test_tuning_prefers_pairs_whose_solves_converge(tuned, monkeypatch):
    before, validation = tuned

    def judged(model, measured):
        solutions = [model.solve(m.operator, m.y) for m in measured[:1]]
        return Score(30 - model.tuning.sigma, model.tuning.sigma > 0.15), solutions

    monkeypatch.setattr("elder.training.tune.validate", judged)
    found, trials = tune(before, validation, start=Tuning(0.1, 0.08, 10.0), factors=(2.0,))
    assert found.tuning.sigma == pytest.approx(0.16)
    assert {trial.converged for trial in trials} == {True, False}


def test_training_that_loses_its_fixed_points_goes_back(tuned, patches):
    before, validation = tuned
    assert validate(before, validation)[0].converged
    reckless = Finetuning(steps=4, batch=2, patch=24, learning_rate=30.0, validate_every=2, patience=9)
    rows = []
    after = finetune(before, patches, validation, reckless, lambda step, figures: rows.append(figures))
    assert rows[2]["went_back"] == 1
    # The step after it begins where the best was.
    assert rows[3]["weight"] == pytest.approx(before.tuning.weight) != rows[2]["weight"]
    assert validate(after, validation)[0].converged


def test_finetuning_lowers_the_error_of_the_fixed_points(tuned, patches):
    before, validation = tuned
    settings = Finetuning(steps=30, batch=4, patch=24, learning_rate=5e-4, tuning_rate=0.03, validate_every=5)
    rows = []
    after = finetune(before, patches, validation, settings, lambda step, figures: rows.append(figures))
    assert validate(after, validation)[0].psnr > validate(before, validation)[0].psnr + 0.1
    assert len(rows) == 31
    assert {"loss", "gradient_norm", "forward_steps", "backward_products", "weight", "sigma", "step_size"} <= rows[
        1
    ].keys()
    # The model it began with is as it was.
    assert not any(p.requires_grad for p in before.regularizer.parameters())


def test_finetuning_repeats(tuned, patches):
    before, validation = tuned
    settings = Finetuning(steps=2, batch=2, patch=24, validate_every=1)
    first, again = (finetune(before, patches, validation, settings, silent) for _ in range(2))
    assert first.tuning == again.tuning
    for a, b in zip(first.regularizer.parameters(), again.regularizer.parameters(), strict=True):
        assert torch.equal(a, b)


def test_finetuning_gives_up_with_advice(tuned, patches):
    before, validation = tuned
    hopeless = Finetuning(steps=9, batch=2, patch=24, tol=1e-13, max_steps=1, patience=3)
    with pytest.raises(FloatingPointError, match=r"no image was usable in 3 steps in a row.*max_steps"):
        finetune(before, patches, validation, hopeless, silent)


class Killed(Exception):
    pass


def until(last: int):
    """A report that ends the training at a step, as a kill would, with the checkpoint as it is."""

    def report(step: int, figures: dict[str, float]) -> None:
        if step > last:
            raise Killed

    return report


@pytest.mark.parametrize("stops", [(4,), (2, 5, 6)], ids=str)
def test_pretraining_goes_on_from_its_checkpoint(stops, patches, tmp_path):
    checkpoint = Checkpoint(tmp_path, every=2)
    settings = Pretraining(steps=8, batch=2, patch=24)

    def train(report, checkpoint: Checkpoint | None) -> regularizers.Regularizer:
        torch.manual_seed(1)
        energy = regularizers.make(**DESCRIPTION)
        pretrain(energy, patches, settings, report, checkpoint=checkpoint)
        return energy

    unbroken = train(silent, None)
    for last in stops:
        with pytest.raises(Killed):
            train(until(last), checkpoint)
    steps: list[int] = []
    resumed = train(lambda step, figures: steps.append(step), checkpoint)
    assert steps[0] == stops[-1] // 2 * 2 + 1
    for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_finetuning_goes_on_from_its_checkpoint(tuned, patches, tmp_path):
    before, validation = tuned
    checkpoint = Checkpoint(tmp_path, every=1)
    settings = Finetuning(steps=5, batch=2, patch=24, validate_every=2, learning_rate=5e-4)
    rows, again = [], []
    unbroken = finetune(before, patches, validation, settings, lambda step, figures: rows.append((step, figures)))
    for last in (1, 3):
        with pytest.raises(Killed):
            finetune(before, patches, validation, settings, until(last), checkpoint=checkpoint)
    resumed = finetune(
        before,
        patches,
        validation,
        settings,
        lambda step, figures: again.append((step, figures)),
        checkpoint=checkpoint,
    )
    assert again == rows[-len(again) :]
    assert resumed.tuning == unbroken.tuning
    for a, b in zip(unbroken.regularizer.parameters(), resumed.regularizer.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path, every=2)
    checkpoint.save(1, {"step": 1})
    assert checkpoint.load() is None
    checkpoint.save(2, {"step": 2})

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(4, {"step": 4})
    assert checkpoint.load() == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"state.pt: corrupt checkpoint .*delete it"):
        checkpoint.load()


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(patches, monkeypatch):
    torch.manual_seed(1)
    energy = regularizers.make(**DESCRIPTION)
    rows, broken = [], {3, 4}
    draw = Patches.draw

    def spoilt(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        x = draw(self, batch, generator)
        return x * torch.nan if len(rows) + 1 in broken else x

    monkeypatch.setattr(Patches, "draw", spoilt)
    settings = Pretraining(steps=6, batch=2, patch=24, patience=3)
    pretrain(energy, patches, settings, lambda step, figures: rows.append(figures))
    assert [row["skipped"] for row in rows] == [0, 0, 1, 1, 0, 0]
    assert all(bool(p.isfinite().all()) for p in energy.parameters())
    rows, broken = [], {2, 3, 4}
    with pytest.raises(FloatingPointError, match=r"3 steps in a row: lower pretrain.learning_rate"):
        pretrain(energy, patches, settings, lambda step, figures: rows.append(figures))


@pytest.mark.parametrize("adjoint", ["anderson", "fixed_point", "neumann", "jacobian_free"])
def test_other_adjoint_solvers_train_too(adjoint, tuned, patches):
    before, validation = tuned
    settings = Finetuning(
        steps=3, batch=2, patch=24, validate_every=3, adjoint=adjoint, adjoint_steps=4 if adjoint == "neumann" else 60
    )
    rows = []
    finetune(before, patches, validation, settings, lambda step, figures: rows.append(figures))
    assert sum("loss" in row for row in rows) == 3
    products = {row["backward_products"] for row in rows[1:]}
    if adjoint in ("neumann", "jacobian_free"):
        assert products == {5.0 if adjoint == "neumann" else 1.0}
    else:
        assert min(products) > 3


def test_the_implicit_counterpart_is_trained_by_the_same_loop(patches, images):
    description = {**DESCRIPTION, "name": "implicit"}
    torch.manual_seed(1)
    denoiser = regularizers.make(**description)
    pretrain(denoiser, patches, Pretraining(steps=150, batch=8, patch=24, learning_rate=5e-3), silent)
    problem = problems.make("csmri", {"ratio": 0.4, "seed": 5})
    validation = measure(problem, ["brick", "camera"], images[:2])
    mistuned = Tuning(1.0, 0.4, 1.0, tol=1e-4, max_steps=100)
    before = Model(problem, denoiser.eval().requires_grad_(False), mistuned, description)
    settings = Finetuning(steps=20, batch=4, patch=24, learning_rate=5e-4, tuning_rate=0.1, validate_every=5)
    after = finetune(before, patches, validation, settings, silent)
    score, solutions = validate(after, validation)
    assert score.psnr > validate(before, validation)[0].psnr + 0.3
    assert all(solution.energy is None for solution in solutions)


def test_an_image_smaller_than_the_patch_is_named(images):
    with pytest.raises(UserError, match="coin is 40x48, smaller than patch=64"):
        Patches(images[:1], 64, ["coin"])


@pytest.mark.parametrize("settings", [{"steps": 0}, {"loss": "l1"}, {"tol": -1.0}, {"adjoint": "exact"}])
def test_bad_settings_name_themselves(settings):
    with pytest.raises(UserError, match=f"finetune.{next(iter(settings))}"):
        Finetuning(**settings)
