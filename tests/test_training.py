"""Pre-training, tuning and fine-tuning do what they say, and repeat."""

from __future__ import annotations

import math
import struct
import zipfile
from dataclasses import replace
from itertools import count

import pytest
import torch

from elder import UserError, io, problems, regularizers
from elder.implicit import Linearization, fixed_point_step
from elder.io import to_tensor
from elder.model.model import Hyperparameters, Model
from elder.problems.csmri import CSMRI
from elder.problems.samples import Sample, measure
from elder.stability import spectral_radius
from elder.training import tune as tuning
from elder.training.averaging import moving_average
from elder.training.checkpoint import Checkpoint
from elder.training.finetune import finetune, progress
from elder.training.history import History, Trained, silent
from elder.training.patches import Patches
from elder.training.pretrain import Pretraining, denoising_psnr, pretrain
from elder.training.progress import NOMINAL
from elder.training.settings import LONGER, LOSSES, Effort, Finetuning, stretched
from elder.training.tune import Trial, edges, starting_lambda, trial_of, tune
from elder.training.update import drawing
from elder.training.validation import Score, validate
from stages.finetune import advice

DESCRIPTION = {"name": "least_squares", "network": {"name": "dncnn", "channels": 1, "width": 8, "depth": 3}}


@pytest.fixture(scope="module")
def images(photographs) -> list[torch.Tensor]:
    return [to_tensor(io.read_image(path)) for path in io.list_sources(photographs)]


@pytest.fixture(scope="module")
def patches(images) -> Patches:
    return Patches(images[1:], 24, [str(i) for i in range(1, len(images))])


def pretrained(patches: Patches, steps: int) -> regularizers.Regularizer:
    torch.manual_seed(1)
    energy = regularizers.make(**DESCRIPTION)
    pretrain(energy, patches, Pretraining(steps=steps, batch=8, patch=24, learning_rate=5e-3))
    return energy


@pytest.fixture(scope="module")
def tuned(patches, images) -> tuple[Model, list[Sample]]:
    problem = problems.make("csmri", {"ratio": 0.4, "seed": 5})
    validation = measure(problem, ["brick", "camera"], images[:2])
    start = Hyperparameters(0.1, 0.1, 10.0, tol=1e-4, max_steps=100)
    model = Model(problem, pretrained(patches, 150).eval().requires_grad_(False), start, DESCRIPTION)
    return tune(model, validation, start=start, factors=(3.0, 3.0**0.5))[0], validation


def test_pretraining_denoises(patches, images):
    before = denoising_psnr(pretrained(patches, 1), images[:1], 0.1)
    assert denoising_psnr(pretrained(patches, 150), images[:1], 0.1) > before + 3


def test_pretraining_repeats(patches):
    first, again = (pretrained(patches, 5).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_an_untrained_drunet_returns_its_picture(images):
    """So training does not spend its first steps on what a residual would cost to unlearn."""
    torch.manual_seed(0)
    network = {"name": "drunet", "channels": 1, "widths": [8, 16, 32, 32], "blocks": 2, "activation": "elu"}
    x = images[0]
    for kind in ("least_squares", "implicit"):
        denoised = regularizers.make(kind, network).denoise(x, torch.tensor(0.1)).detach()
        assert float((denoised - x).norm() / x.norm()) < 0.02


def test_patches_are_turned_and_mirrored():
    corner = torch.arange(16.0).view(1, 1, 4, 4) / 16
    patches = Patches([corner], 4, ["corner"])
    found = {tuple(patch.flatten().tolist()) for patch in patches.draw(200, torch.Generator().manual_seed(0))}
    turned = [torch.rot90(corner, turns, (-2, -1)) for turns in range(4)]
    assert found == {tuple(t.flatten().tolist()) for t in (*turned, *(t.flip(-1) for t in turned))}


def test_tuning_finds_no_worse_than_where_it_starts(tuned):
    model, validation = tuned
    start = replace(model, hyperparameters=Hyperparameters(0.1, 0.1, 10.0, tol=1e-4, max_steps=100))
    assert validate(model, validation).psnr >= validate(start, validation).psnr


@pytest.mark.parametrize(("starts", "sigma"), [([], 0.09), ([(0.1, 0.005), (0.1, 0.02)], 0.008)])
def test_a_grid_finds_the_maximum_of_a_small_sigma(starts, sigma, tuned, monkeypatch):
    """28 dB at σ = 0.09, 31 dB at σ = 0.008, and less between them."""

    def landscape(model: Model, samples: list[Sample]) -> Trial:
        log = math.log(model.hyperparameters.sigma)
        psnr = max(28 - (log - math.log(0.09)) ** 2, 31 - (log - math.log(0.008)) ** 2)
        return Trial(model.hyperparameters.lambda_reg, model.hyperparameters.sigma, psnr, 1.0, psnr, 1.0, step=1.0)

    monkeypatch.setattr(tuning, "trial_of", landscape)
    start = Hyperparameters(0.1, 0.06, 10.0)
    found, _ = tuning.tune(tuned[0], tuned[1], start=start, factors=(2.0, 1.4, 1.1), starts=starts)
    assert found.hyperparameters.sigma == pytest.approx(sigma, rel=0.06)


def test_tuning_leaves_a_weight_alone_that_has_no_part_in_the_minimum(tuned, images):
    """Under a hard constraint the minimizer of λh is that of h."""
    problem = problems.make("inpaint", {"missing": 0.3})
    before, validation = replace(tuned[0], problem=problem), measure(problem, ["brick"], images[:1])
    trials = tune(before, validation, start=before.hyperparameters, factors=(4.0, 2.0))[1]
    assert len(trials) >= 3
    assert {trial.lambda_reg for trial in trials} == {before.hyperparameters.lambda_reg}
    other = replace(
        before,
        hyperparameters=replace(before.hyperparameters, lambda_reg=3 * before.hyperparameters.lambda_reg, tol=1e-5),
    )
    same = replace(before, hyperparameters=replace(before.hyperparameters, tol=1e-5))
    gap = validate(other, validation).psnr - validate(same, validation).psnr
    assert abs(gap) < 0.01


def test_a_lost_solve_is_charged_in_decibels():
    assert Score(25.0, 1.0).beats(Score(27.0, 0.8))  # 0.15 short of 0.95: 3 dB
    assert Score(28.5, 0.8).beats(Score(25.0, 1.0))
    assert Score(25.0, 0.95).merit == Score(25.0, 1.0).merit == 25.0
    assert not Score(25.2, 1.0).beats(Score(25.0, 1.0), by=0.3)


def test_tuning_charges_pairs_whose_solves_fail(tuned, monkeypatch):
    before, validation = tuned

    def tried(model, measured):
        sigma = model.hyperparameters.sigma
        return Trial(model.hyperparameters.lambda_reg, sigma, 30 - sigma, float(sigma > 0.15), 31.0, 4.0, 1.0)

    monkeypatch.setattr("elder.training.tune.trial_of", tried)
    found, trials = tune(before, validation, start=Hyperparameters(0.1, 0.08, 10.0), factors=(2.0,))
    assert found.hyperparameters.sigma == pytest.approx(0.16)
    assert {trial.converged for trial in trials} == {True, False}


def test_a_trial_tells_the_end_of_the_solves_from_their_best_on_the_way(tuned):
    before, validation = tuned
    trial, score = trial_of(before, validation), validate(before, validation)
    solutions = [before.solve(sample.operator, sample.y) for sample in validation]
    assert trial.psnr == pytest.approx(score.psnr, abs=1e-4)
    assert trial.converged == score.converged
    assert trial.step == pytest.approx(min(float(s.step.min()) for s in solutions))
    assert trial.peak_psnr >= trial.psnr
    # Too little regularization: the start is better than the end.
    noisy = replace(before, problem=problems.make("denoise", {"noise": 0.2}))
    measured = measure(noisy.problem, ["brick"], [validation[0].truth])
    weak = trial_of(
        replace(noisy, hyperparameters=replace(before.hyperparameters, lambda_reg=1e-4, step=1e4)), measured
    )
    strong = trial_of(
        replace(noisy, hyperparameters=replace(before.hyperparameters, lambda_reg=2.0, step=0.5)), measured
    )
    assert strong.psnr > weak.psnr + 3


def test_a_solve_that_runs_away_is_ended(tuned, monkeypatch):
    before, validation = tuned
    falling = iter([18.0, 20.0, 25.0, 24.0, 21.9, 21.0, 20.0])  # of the initial guess, and of the iterates
    monkeypatch.setattr("elder.training.tune.psnr", lambda x, truth: torch.tensor([next(falling)], dtype=torch.float64))
    trial = trial_of(replace(before, hyperparameters=replace(before.hyperparameters, tol=1e-12)), validation[:1])
    assert (trial.psnr, trial.peak_psnr, trial.peak_step, trial.converged) == (21.9, 25.0, 1.0, 0.0)


def test_the_search_starts_at_a_weight_that_fits_noise_and_operator(images):
    denoise = problems.make("denoise", {"noise": 0.1})
    measured = measure(denoise, ["brick"], images[:1])
    assert starting_lambda(measured, 0.1, 0.05) == pytest.approx(4.0)
    # Without noise, in units of the mean eigenvalue of AᵀA: here the share of k-space that is sampled.
    exact = measure(problems.make("csmri", {"ratio": 0.4}), ["brick"], images[:1])
    assert starting_lambda(exact, 0.0, 0.05) == pytest.approx(0.01 * 0.4, rel=0.1)


def test_the_end_at_an_edge_is_said():
    within, beyond = (Trial(1.0, sigma, 30.0, 1.0, 30.0, 5.0, 1.0) for sigma in (0.1, 1 / 255))
    assert edges(within, constrained=False) == []
    assert edges(beyond, constrained=False) == ["σ"]
    assert edges(replace(within, lambda_reg=1e-7), constrained=False) == ["λ"]
    assert edges(replace(within, lambda_reg=1e-7), constrained=True) == []


def test_training_that_loses_its_fixed_points_goes_back(tuned, patches):
    before, validation = tuned
    assert validate(before, validation).converged == 1
    reckless = Finetuning(steps=4, batch=2, patch=24, learning_rate=30.0, validate_every=2, warmup=0.0, average=0.0)
    trained = finetune(before, patches, validation, reckless, patience=9)
    after, rows = trained.result, trained.history.rows
    assert rows[2]["went_back"] == 1
    # The step after it begins where the best was.
    assert rows[3]["weight"] == pytest.approx(before.hyperparameters.lambda_reg) != rows[2]["weight"]
    assert validate(after, validation).converged == 1


def test_going_back_halves_the_rates_and_keeps_what_the_optimizer_knows(tuned, rng):
    before, _ = tuned
    now = progress(before, Finetuning(steps=100))
    for _ in range(5):
        for parameter in now.theta.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=rng, dtype=torch.float64).to(parameter)
        now.optimizer.step()
        now.schedule.step()
        now.averaged.update_parameters(now.theta)
    states = list(now.optimizer.state.values())
    seconds = [state["exp_avg_sq"].clone() for state in states]
    rates = [group["lr"] for group in now.optimizer.param_groups]
    now.go_back()
    assert [group["lr"] for group in now.optimizer.param_groups] == pytest.approx([rate / 2 for rate in rates])
    now.optimizer.zero_grad()
    now.schedule.step()
    assert all(group["lr"] < 0.9 * rate for group, rate in zip(now.optimizer.param_groups, rates, strict=True))
    assert all(torch.equal(state["exp_avg_sq"], kept) for state, kept in zip(states, seconds, strict=True))
    assert all(float(kept.abs().max()) > 0 for kept in seconds)
    assert all(float(state["exp_avg"].abs().max()) == 0 for state in states)
    for part in (now.theta, now.model):
        for name, weights in before.regularizer.state_dict().items():
            assert torch.equal(part.regularizer.state_dict()[name], weights)


def test_finetuning_lowers_the_error_of_the_fixed_points(tuned, patches):
    before, validation = tuned
    settings = Finetuning(steps=30, batch=4, patch=24, learning_rate=5e-4, tuning_rate=0.03, validate_every=5)
    rows = []
    after = finetune(before, patches, validation, settings, lambda step, figures: rows.append(figures)).result
    assert validate(after, validation).psnr > validate(before, validation).psnr + 0.1
    assert len(rows) == 31
    assert {"loss", "gradient_norm", "forward_steps", "backward_products", "weight", "sigma", "step_size"} <= rows[
        1
    ].keys()
    # The model it began with is as it was.
    assert not any(p.requires_grad for p in before.regularizer.parameters())


def test_finetuning_repeats(tuned, patches):
    before, validation = tuned
    settings = Finetuning(steps=2, batch=2, patch=24, validate_every=1)
    first, again = (finetune(before, patches, validation, settings).result for _ in range(2))
    assert first.hyperparameters == again.hyperparameters
    for a, b in zip(first.regularizer.parameters(), again.regularizer.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_picture_contributes_though_no_solve_converges(tuned, patches):
    before, validation = tuned
    hasty = Finetuning(
        steps=30, batch=4, patch=24, learning_rate=5e-4, tol=1e-13, max_steps=4, warmup=0.0, validate_every=10
    )
    rows = []
    after = finetune(before, patches, validation, hasty, lambda step, figures: rows.append(figures)).result
    assert all(row["forward_failed"] == 4 and row["approximate"] == 1 for row in rows[1:])
    assert all(row["exact"] == row["left_out"] == row["skipped"] == 0 for row in rows[1:])
    assert validate(after, validation).merit > validate(before, validation).merit + 0.05


def test_a_solve_that_diverges_teaches_at_its_initial_guess_and_is_counted(tuned, patches):
    """Its last iterate is far from any picture; and the nominal step of the penalty is not that of the worst image."""
    torch.manual_seed(0)
    wild = regularizers.make(**{**DESCRIPTION, "name": "implicit"})
    with torch.no_grad():
        for parameter in wild.parameters():
            parameter.mul_(10)
    tuning = replace(tuned[0].hyperparameters, lambda_reg=1.0, step=0.25)
    before = replace(tuned[0], regularizer=wild.eval().requires_grad_(False), hyperparameters=tuning)
    settings = Finetuning(steps=1, batch=2, patch=24, max_steps=60, warmup=0.0, loss="mse", stability=0.0)
    row = finetune(before, patches, tuned[1], settings).history.rows[1]
    assert (row["diverged"], row["approximate"], row["skipped"]) == (2, 1, 0)
    drawn = drawing(before, patches, settings)(1, torch.Generator().manual_seed(settings.seed))
    guess = before.problem.initial(drawn.operator, drawn.y)
    at = Linearization.at(before.objective(drawn.operator, drawn.y), guess)
    stepped = fixed_point_step(at, torch.tensor(NOMINAL, dtype=torch.float64))
    assert row["mse"] == pytest.approx(float((stepped - drawn.x).square().mean()), rel=1e-5)


def test_pictures_may_be_left_out_and_are_counted(tuned, patches):
    before, validation = tuned
    hopeless = Finetuning(steps=9, batch=2, patch=24, tol=1e-13, max_steps=1, fallback="skip")
    rows = []
    with pytest.raises(FloatingPointError, match=r"no finite gradient in 3 steps in a row.*max_steps"):
        finetune(before, patches, validation, hopeless, lambda step, figures: rows.append(figures), patience=3)
    assert [row["left_out"] for row in rows[1:]] == [1, 1]


def test_a_picture_without_error_does_not_spoil_the_loss_of_the_others():
    error = torch.tensor([0.0, 1e-3], requires_grad=True)
    LOSSES["psnr"](error).backward()
    assert error.grad is not None
    assert error.grad.isfinite().all()
    assert float(error.grad[1]) == pytest.approx(500)


def test_the_penalty_holds_the_spectral_radius(tuned, patches):
    before, validation = tuned
    radii = {}
    for target in (0.6, 0.99):
        settings = Finetuning(
            steps=40, batch=4, patch=24, learning_rate=3e-4, stability=target, validate_every=40, warmup=0.0
        )
        trained = finetune(before, patches, validation, settings)
        penalized = [row for row in trained.history.rows if "spectral_radius" in row]
        assert len(penalized) == settings.steps // settings.stability_every
        weights = [row["penalty_weight"] for row in penalized]
        assert (weights[-1] > weights[0]) == (target == 0.6)
        radii[target] = sum(converged_radius(trained.result, m) for m in validation) / len(validation)
    assert radii[0.6] < radii[0.99] - 0.03


def converged_radius(model, sample):
    """The spectral radius at the solution of a sample, by so many products that more would not change it."""
    solution = model.solve(sample.operator, sample.y)
    at = Linearization.at(model.objective(sample.operator, sample.y), solution.x)
    start = torch.randn(solution.x.shape, generator=torch.Generator().manual_seed(0))
    return float(spectral_radius(at, torch.tensor(1 / model.hyperparameters.lambda_reg), start, 40))


def test_a_certified_energy_needs_no_penalty(tuned, patches):
    _, validation = tuned
    energy = regularizers.make("weakly_convex_ridge", filters=4, filter_size=3)
    problem = problems.make("csmri", {"ratio": 0.4, "seed": 5})
    before = Model(problem, energy, Hyperparameters(0.1, 0.1, 10.0), {"name": "weakly_convex_ridge"})
    rows = []
    settings = Finetuning(steps=2, batch=2, patch=24, validate_every=2)
    finetune(before, patches, validation, settings, lambda step, figures: rows.append(figures))
    assert all("spectral_radius" not in row for row in rows)


def test_the_effort_grows_during_the_warm_up():
    settings = Finetuning(steps=100, warmup=0.5, max_steps=20, tol=1e-4, adjoint_tol=0.05)
    efforts = [Effort.at(settings, step) for step in (1, 25, 50, 100)]
    assert [e.max_steps for e in efforts] == sorted(e.max_steps for e in efforts)
    assert efforts[0].max_steps == pytest.approx(8, abs=1)
    assert efforts[0].tol > 5 * efforts[2].tol
    assert efforts[0].adjoint_tol > efforts[2].adjoint_tol
    assert efforts[2] == efforts[3] == Effort(1e-4, 20, 0.05)
    assert Effort.at(replace(settings, warmup=0.0), 1) == efforts[3]


def test_solves_get_more_steps_where_too_few_converge(tuned, patches):
    before, validation = tuned
    rows: dict[float, list[dict[str, float]]] = {0.0: [], 0.8: []}
    for target, found in rows.items():
        short = Finetuning(
            steps=60, batch=2, patch=24, max_steps=4, solved=target, warmup=0.1, validate_every=60, learning_rate=1e-6
        )
        finetune(before, patches, validation, short, lambda step, figures, found=found: found.append(figures))
    assert {row["most_steps"] for row in rows[0.0][7:]} == {4}
    assert {row["most_steps"] for row in rows[0.8][:7] if "most_steps" in row} <= {2, 3, 4}  # the warm-up goes its way
    assert rows[0.8][-1]["most_steps"] > 5
    failed = {target: sum(row["forward_failed"] for row in found[-10:]) for target, found in rows.items()}
    assert failed[0.8] < 8 < 15 < failed[0.0]


def test_the_most_steps_follow_the_share_of_solves():
    assert stretched(1.0, 0.5, 0.8) == 1.05
    assert stretched(1.5, 0.9, 0.8) < 1.5
    assert stretched(1.0, 0.9, 0.8) == 1
    assert stretched(LONGER, 0.0, 0.8) == LONGER


def test_a_training_that_only_loses_says_so():
    settings = Finetuning(steps=100, stability=0.9)
    lost = History([{"step": 20, "val_below": 0.0}, {"step": 100, "val_below": 0.75}])
    assert advice(20, settings, lost) == (
        "step 20 of 100 was the best on validation, and is kept; the last one is 0.75 dB below. "
        "A lower learning_rate, or a larger stability than 0.9, may gain more"
    )
    assert "stability" not in str(advice(20, replace(settings, stability=0.0), lost))
    assert advice(80, settings, lost) is None
    assert advice(20, settings, History([{"step": 100, "val_below": 0.05}])) is None


def test_training_measurements_may_differ_from_those_of_validation(tuned, patches):
    before, validation = tuned
    drawn = []

    class Recorded(CSMRI):
        def simulate(self, x, generator):
            drawn.append(self.ratio)
            return super().simulate(x, generator)

    settings = Finetuning(steps=2, batch=2, patch=24, validate_every=2)
    after = finetune(before, patches, validation, settings, drawn=[Recorded(ratio=0.9)]).result
    assert drawn == [0.9, 0.9]
    assert after.problem == before.problem
    drawn.clear()
    problems = [Recorded(ratio=0.3), Recorded(ratio=0.6)]
    finetune(before, patches, validation, replace(settings, steps=12, validate_every=12), drawn=problems)
    assert set(drawn) == {0.3, 0.6}


def test_the_average_of_weights_follows_them():
    module = torch.nn.Linear(1, 1)
    averaged = moving_average(module, 0.5)
    for value in (1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0):
        torch.nn.init.constant_(module.weight, value)
        averaged.update_parameters(module)
    assert 1.9 < float(next(averaged.module.parameters()).detach()) < 2.0
    latest = moving_average(module, 0.0)
    for value in (1.0, 3.0):
        torch.nn.init.constant_(module.weight, value)
        latest.update_parameters(module)
    assert float(next(latest.module.parameters()).detach()) == 3.0


def test_a_history_sums_up_the_steps_that_report_a_metric():
    history = History()
    for step, metrics in enumerate([{"val_psnr": 20.0}, {"exact": 0.5}, {"exact": 1.0, "val_psnr": 24.0}]):
        history.append(step, metrics)
    assert history.rows[2] == {"step": 2, "exact": 1.0, "val_psnr": 24.0}
    assert (history.first("val_psnr"), history.mean("exact"), history.total("exact")) == (20.0, 0.75, 1.5)
    assert history.total("skipped") == 0
    with pytest.raises(KeyError, match="no step reported skipped"):
        history.mean("skipped")


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

    def train(report, checkpoint: Checkpoint | None) -> Trained[regularizers.Regularizer]:
        torch.manual_seed(1)
        return pretrain(regularizers.make(**DESCRIPTION), patches, settings, report, checkpoint=checkpoint)

    unbroken = train(silent, None)
    for last in stops:
        with pytest.raises(Killed):
            train(until(last), checkpoint)
    steps: list[int] = []
    resumed = train(lambda step, figures: steps.append(step), checkpoint)
    assert steps[0] == stops[-1] // 2 * 2 + 1
    assert [row["step"] for row in unbroken.history.rows] == list(range(1, 9))
    assert resumed.history == unbroken.history
    for a, b in zip(unbroken.result.parameters(), resumed.result.parameters(), strict=True):
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
    assert resumed.result.hyperparameters == unbroken.result.hyperparameters
    assert resumed.history == unbroken.history
    for a, b in zip(unbroken.result.regularizer.parameters(), resumed.result.regularizer.parameters(), strict=True):
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="the checkpoint has to be of a device that is absent")
def test_a_training_of_an_accelerator_goes_on_without_one(tmp_path):
    checkpoint = Checkpoint(tmp_path, every=1)
    checkpoint.save(1, {"weights": torch.arange(3.0)})
    with zipfile.ZipFile(checkpoint.path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    # The name of the device of a tensor, as pickle writes it: the length of a text, and the text.
    here, there = (struct.pack("<I", len(name)) + name for name in (b"cpu", b"cuda:0"))
    with zipfile.ZipFile(checkpoint.path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content.replace(here, there) if name.endswith("data.pkl") else content)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(checkpoint.path, weights_only=True)
    assert checkpoint.load()["weights"].tolist() == [0, 1, 2]


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(patches, monkeypatch):
    torch.manual_seed(1)
    energy = regularizers.make(**DESCRIPTION)
    rows, broken = [], {3, 4}
    draw, numbers = Patches.draw, count(1)  # one draw a step, made before the step begins

    def spoilt(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        x = draw(self, batch, generator)
        return x * torch.nan if next(numbers) in broken else x

    monkeypatch.setattr(Patches, "draw", spoilt)
    settings = Pretraining(steps=6, batch=2, patch=24)
    pretrain(energy, patches, settings, lambda step, figures: rows.append(figures), patience=3)
    assert [row["skipped"] for row in rows] == [0, 0, 1, 1, 0, 0]
    assert all(bool(p.isfinite().all()) for p in energy.parameters())
    rows, broken, numbers = [], {2, 3, 4}, count(1)
    with pytest.raises(FloatingPointError, match=r"3 steps in a row: lower the learning rate"):
        pretrain(energy, patches, settings, lambda step, figures: rows.append(figures), patience=3)


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
    pretrain(denoiser, patches, Pretraining(steps=150, batch=8, patch=24, learning_rate=5e-3))
    problem = problems.make("csmri", {"ratio": 0.4, "seed": 5})
    validation = measure(problem, ["brick", "camera"], images[:2])
    mistuned = Hyperparameters(1.0, 0.4, 1.0, tol=1e-4, max_steps=100)
    before = Model(problem, denoiser.eval().requires_grad_(False), mistuned, description)
    settings = Finetuning(steps=20, batch=4, patch=24, learning_rate=5e-4, tuning_rate=0.1, validate_every=5)
    after = finetune(before, patches, validation, settings).result
    score = validate(after, validation)
    solutions = [after.solve(sample.operator, sample.y) for sample in validation]
    assert score.psnr > validate(before, validation).psnr + 0.3
    assert all(solution.energy is None for solution in solutions)


def test_an_image_smaller_than_the_patch_is_named(images):
    with pytest.raises(UserError, match="coin is 40x48, smaller than patch=64"):
        Patches(images[:1], 64, ["coin"])


BAD = [{"steps": 0}, {"loss": "l1"}, {"tol": -1.0}, {"adjoint": "exact"}, {"fallback": "hope"}, {"stability": 1.5}]


@pytest.mark.parametrize("settings", BAD)
def test_bad_settings_name_themselves(settings):
    with pytest.raises(UserError, match=f"^{next(iter(settings))}="):
        Finetuning(**settings)
