"""A batch that is computed in parts trains as the whole batch does."""

from __future__ import annotations

import pytest
import torch
from trainings import DESCRIPTION, IMPLICIT, smooth_pictures

from elder import regularizers
from elder.implicit import Linearization
from elder.model.model import Hyperparameters, Model
from elder.problems.csmri import CSMRI
from elder.training.finetune import progress
from elder.training.patches import Patches
from elder.training.pretrain import Pretraining, pretrain
from elder.training.processes import Processes
from elder.training.progress import Progress
from elder.training.settings import Finetuning
from elder.training.update import drawing, update

STEPS = 2  # a third would not be compared to 1e-8: through unfinished solves, rounding grows by some 1e4 a step


@pytest.fixture(scope="module")
def patches() -> Patches:
    return Patches(smooth_pictures(torch.float64), 16, list("abcd"))


@pytest.fixture(scope="module")
def models(patches) -> dict[str, Model]:
    found = {}
    # The line search of the energy shortens this first step, and λτ moves.
    for description, step in ((DESCRIPTION, 60.0), (IMPLICIT, 10.0)):
        torch.manual_seed(1)
        denoiser = regularizers.make(**description).double()
        pretrain(denoiser, patches, Pretraining(steps=40, batch=4, patch=16, learning_rate=5e-3))
        problem, tuned = CSMRI(ratio=0.4, seed=5), Hyperparameters(0.1, 0.1, step)
        found[description["name"]] = Model(problem, denoiser.eval().requires_grad_(False), tuned, description)
    return found


def trained(
    before: Model, patches: Patches, settings: Finetuning, micro_batch: int
) -> tuple[Progress, list[dict[str, float]]]:
    now, rows = progress(before, settings, Processes(micro_batch=micro_batch)), []
    make, generator = drawing(before, patches, settings), torch.Generator().manual_seed(settings.seed)
    for now.step in range(1, STEPS + 1):
        rows.append(update(now, before, make(now.step, generator), settings))
    return now, rows


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


# Within these steps and this tolerance some forward solves of each batch end, and some do not.
SOLVES = {"least_squares": {"max_steps": 10, "tol": 2e-3}, "implicit": {"max_steps": 9, "tol": 5e-4}}


@pytest.mark.parametrize(
    ("name", "loss", "fallback"),
    [
        ("least_squares", "psnr", "jacobian_free"),
        ("least_squares", "mse", "skip"),
        ("implicit", "mse", "neumann"),
    ],
)
def test_parts_give_the_parameters_of_the_whole_batch(name, loss, fallback, models, patches, monkeypatch):
    before, recorded, at = models[name], [], Linearization.at

    def counted(problem, x):
        recorded.append(len(x))
        return at(problem, x)

    monkeypatch.setattr(Linearization, "at", counted)
    settings = Finetuning(
        steps=STEPS,
        batch=5,
        patch=16,
        warmup=0.0,
        stability=0.3,
        stability_every=1,
        loss=loss,
        fallback=fallback,
        **SOLVES[name],
    )
    whole, expected = trained(before, patches, settings, 0)
    assert all(0 < row["exact"] < 1 for row in expected)
    assert set(recorded) == {5}
    recorded.clear()
    parts, found = trained(before, patches, settings, 2)
    assert set(recorded) == {1, 2}  # so the memory is that of two images
    for module, reference in ((parts.theta, whole.theta), (parts.averaged, whole.averaged)):
        assert_close(module.state_dict(), reference.state_dict())
    assert (parts.scale, parts.penalty_weight) == pytest.approx((whole.scale, whole.penalty_weight), rel=1e-10)
    for row, reference in zip(found, expected, strict=True):
        # A part ends its adjoint solve with its own slowest image.
        assert row.pop("backward_products") <= reference.pop("backward_products")
        assert row == {name: pytest.approx(value, rel=1e-8) for name, value in reference.items()}


def test_parts_of_pre_training_give_the_weights_of_the_whole_batch(patches, monkeypatch):
    denoise, seen, found = regularizers.Regularizer.denoise, [], []

    def counted(self, x, sigma):
        seen.append(len(x))
        return denoise(self, x, sigma)

    monkeypatch.setattr(regularizers.Regularizer, "denoise", counted)
    for micro_batch in (0, 2):
        torch.manual_seed(1)
        energy = regularizers.make(**DESCRIPTION).double()
        settings = Pretraining(steps=STEPS, batch=5, patch=16)
        rows = pretrain(energy, patches, settings, processes=Processes(micro_batch=micro_batch)).history.rows
        found.append((energy.state_dict(), rows))
    assert seen == [5] * STEPS + [1, 2, 2] * STEPS
    (whole, expected), (parts, rows) = found
    assert_close(parts, whole)
    assert rows == [{name: pytest.approx(value, rel=1e-8) for name, value in row.items()} for row in expected]
