"""Device and precision: settings that change the time of a result, not the result."""

from __future__ import annotations

from dataclasses import replace

import cases
import pytest
import torch
from torch import Tensor

from elder import UserError, backend, io, problems, regularizers
from elder.backend import Compute, autocast, chunks, to_device
from elder.evaluation.evaluate import convergence, evaluate
from elder.io import to_tensor
from elder.model.model import Hyperparameters, Model
from elder.objective import Objective, make_objective
from elder.problems.samples import measure
from elder.training.finetune import finetune
from elder.training.patches import Patches
from elder.training.pretrain import Pretraining, pretrain
from elder.training.settings import Finetuning
from elder.training.tune import trial_of

DESCRIPTION = {"name": "least_squares", "network": {"name": "dncnn", "channels": 1, "width": 8, "depth": 3}}
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))
DEVICES = ["cpu", CUDA]


@pytest.fixture(scope="module")
def patches(photographs) -> Patches:
    images = [to_tensor(io.read_image(path)) for path in io.list_sources(photographs)]
    return Patches(images, 24, [str(i) for i in range(len(images))])


@pytest.fixture(scope="module", params=["least_squares", "implicit"])
def model(request, patches) -> Model:
    torch.manual_seed(0)
    description = {**DESCRIPTION, "name": request.param}
    regularizer = regularizers.make(**description)
    pretrain(regularizer, patches, Pretraining(steps=60, batch=8, patch=24, learning_rate=5e-3))
    regularizer.eval().requires_grad_(False)
    return Model(problems.make("csmri", {"ratio": 0.4}), regularizer, Hyperparameters(1.0, 0.2, 1.0), description)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_the_answer_does_not_depend_on_the_precision(precision, device, model, patches):
    m = measure(model.problem, ["a"], [patches.images[1]])[0]
    tight = replace(model, hyperparameters=replace(model.hyperparameters, tol=1e-6, max_steps=400))
    exact = tight.solve(m.operator, m.y)
    polished = tight.on(Compute(device, precision)).solve(m.operator, m.y)
    assert polished.succeeded.all()
    assert polished.x.device == m.y.device
    assert float((polished.x - exact.x).norm() / exact.x.norm()) < 1e-3
    # The rough part was run: its evaluations are counted, and the energy starts where it led.
    assert int(polished.evaluations) > int(polished.steps) + 1
    if exact.energies is not None and polished.energies is not None:
        assert float(polished.energies[0, 0]) < float(exact.energies[0, 0])


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_every_problem_gives_on_a_device_what_it_gives_on_the_cpu(name, device, model, patches):
    chosen = replace(model, problem=problems.make(name))
    m = measure(chosen.problem, ["a"], [patches.images[0]])[0]
    here, there = chosen.solve(m.operator, m.y), chosen.on(Compute(device)).solve(m.operator, m.y)
    assert float((here.x - there.x).norm() / here.x.norm()) < 1e-2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_runs_in_every_precision(precision, device, model, patches):
    compute, rows = Compute(device, precision), []
    regularizer = regularizers.make(**model.description).to(compute.device)
    pretrain(regularizer, patches, Pretraining(steps=3, batch=4, patch=24), precision=precision)
    settings = Finetuning(steps=2, batch=2, patch=24, validate_every=2)
    validation = measure(model.problem, ["a"], patches.images[:1])
    finetune(model.on(compute), patches, validation, settings, lambda step, figures: rows.append(figures))
    assert sum("loss" in row for row in rows) == 2
    assert all(parameter.dtype == torch.float32 for parameter in regularizer.parameters())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kind", "network"), [*cases.ENERGIES, *(("implicit", name) for name in cases.NETWORKS)])
def test_every_direction_is_near_in_bf16_and_trains(kind, network, device, rng):
    regularizer = cases.regularizer(kind, network).float().to(device)
    x, sigma = torch.rand((2, 1, 13, 18), generator=rng).to(device), torch.tensor(0.1, device=device)
    exact = regularizer.gradient(x, sigma)
    with autocast("bf16", x.device):
        near = regularizer.gradient(x, sigma)
    assert float(((near - exact).norm() / exact.norm()).detach()) < 0.05
    gradients = torch.autograd.grad(near.square().sum(), list(regularizer.parameters()), allow_unused=True)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)


@pytest.mark.parametrize(
    "run",
    [
        lambda model, sample: model.solve(sample.operator, sample.y),
        lambda model, sample: convergence(model, sample, 2),
        lambda model, sample: trial_of(model, [sample]),
        lambda model, sample: next(evaluate(model, [sample])),
    ],
    ids=["solve", "convergence", "trial_of", "evaluate"],
)
def test_operator_and_measurement_go_to_the_device_of_the_model(run, model, patches):
    sample = measure(model.problem, ["a"], [patches.images[1]])[0]
    # Tensors on the meta device hold no values, so that a solve there ends; what counts is that it got there.
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        run(model.on(Compute("meta")), sample)


def test_placing_leaves_the_original_where_it_was(model):
    placed = model.on(Compute("meta"))
    assert placed.device.type == "meta"
    assert model.device.type == "cpu"


def test_rounding_ends_with_its_block():
    before = torch.backends.cudnn.allow_tf32
    x = torch.rand(8, 8)
    with autocast("bf16", torch.device("cpu")):
        assert (x @ x).dtype == torch.bfloat16
    assert (x @ x).dtype == torch.float32
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_the_gradient_of_pretraining_is_as_exact_as_its_loss(precision, model, patches):
    regularizer, allowed = regularizers.make(**model.description), []
    for parameter in regularizer.parameters():
        parameter.register_hook(lambda gradient: allowed.append(torch.backends.cudnn.allow_tf32))
    pretrain(regularizer, patches, Pretraining(steps=1, batch=2, patch=24), precision=precision)
    assert set(allowed) == {precision == "tf32"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("kind", sorted({kind for kind, _ in cases.ENERGIES}))
def test_a_product_with_the_hessian_has_all_bits_of_float32(kind, rng):
    """PyTorch's own default would leave ten bits of convolutions in a backward pass: an error near 1e-3."""
    regularizer = cases.regularizer(kind, "drunet").to(Compute("cuda").device)
    x, v = (torch.rand((2, 1, 32, 32), generator=rng, dtype=torch.float64).cuda() for _ in range(2))

    def product(dtype: torch.dtype) -> Tensor:
        point, sigma = x.to(dtype).requires_grad_(), torch.tensor(0.1, dtype=dtype, device="cuda")
        gradient = regularizer.to(dtype).gradient(point, sigma)
        return torch.autograd.grad(gradient, point, v.to(dtype))[0].double()

    exact = product(torch.float64)
    assert float((product(torch.float32) - exact).norm() / exact.norm()) < 1e-5


def test_a_record_moves_with_all_its_tensors(rng):
    operator, _ = problems.make("csmri").simulate(torch.rand((1, 1, 9, 8), generator=rng), rng)
    placed = to_device(operator, "meta")
    assert placed.mask.device.type == placed.eigenvalues.device.type == "meta"
    assert operator.mask.device.type == "cpu"


@pytest.mark.parametrize("name", ["least_squares", "implicit"])
def test_a_batch_is_evaluated_in_parts_only_where_nothing_is_recorded(name, rng, monkeypatch):
    problem = problems.make("csmri")
    x = torch.rand((5, 1, 12, 10), generator=rng)
    operator, y = problem.simulate(x, rng)
    regularizer = regularizers.make(**{**DESCRIPTION, "name": name}).requires_grad_(False)
    equation = make_objective(problem.fidelity(operator, y), regularizer, torch.tensor(0.1), torch.tensor(0.2))

    sizes: list[int] = []
    monkeypatch.setattr(regularizer.network, "check", lambda group: sizes.append(len(group)))

    def evaluated() -> tuple[list[int], list[Tensor]]:
        sizes.clear()
        results = [equation.reg_grad(x)]
        if isinstance(equation, Objective):
            results += [*equation.evaluate(x), equation.value(x)]
        return list(sizes), results

    whole_sizes, whole = evaluated()
    monkeypatch.setattr(backend, "CHUNK", 2 * x[0].numel())
    with torch.no_grad():
        sizes_in_parts, in_parts = evaluated()
    assert set(whole_sizes) == {5}
    assert sizes_in_parts == [2, 2, 1] * len(whole_sizes)
    torch.testing.assert_close(in_parts, whole)
    # What is recorded stays whole: a backward pass goes through all of it at once.
    assert evaluated()[0] == whole_sizes


def test_a_picture_larger_than_a_part_is_one(monkeypatch):
    monkeypatch.setattr(backend, "CHUNK", 10)
    with torch.no_grad():
        assert [len(part) for part in chunks(torch.zeros(3, 1, 4, 4))] == [1, 1, 1]
        assert [len(part) for part in chunks(torch.zeros(0, 1, 4, 4))] == [0]
        assert [len(part) for part in chunks(torch.zeros(3, 1, 4, 4, device="meta"))] == [3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, r"^device='gpu' can't be used"),
        ({"precision": "fp8"}, r"^precision='fp8'"),
        ({"micro_batch": -1}, "^micro_batch=-1"),
        ({"processes": 0}, "^processes=0"),
    ],
)
def test_bad_settings_name_themselves(settings, message):
    with pytest.raises(UserError, match=message):
        Compute(**settings)
