"""Solvers: closed forms, descent, honesty, cost."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import cases
import pytest
import torch
from torch import Tensor

from elder.fidelity import LeastSquares
from elder.linear import minres
from elder.objective import Objective
from elder.operators import MaskedFourier
from elder.problems import masks
from elder.regularizers.base import Energy
from elder.solvers import Anderson, Inertial, ProximalGradient, Status, iterates, solve

METHODS = {"proximal gradient": ProximalGradient(), "inertial": Inertial(), "anderson": Anderson()}


class Quadratic(Energy):
    """h(x) = ½⟨x, D x⟩, D diagonal; it counts its evaluations."""

    def __init__(self, diagonal: Tensor) -> None:
        super().__init__()
        self.diagonal = diagonal
        self.calls = 0

    def value(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (self.diagonal * x * x).flatten(1).sum(1) / 2

    def value_and_grad(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self.value(x, sigma), self.diagonal * x


def problem(energy: Energy, batch: int, rng: torch.Generator, size=(9, 12)) -> tuple[Objective, Tensor]:
    mask = torch.stack([masks.radial(size, 0.4, rng).double() for _ in range(batch)]).unsqueeze(1)
    operator = MaskedFourier(mask)
    y = operator.A(torch.rand((batch, 1, *size), generator=rng, dtype=torch.float64))
    return Objective(LeastSquares.of(operator, y), energy, torch.tensor(0.5), torch.tensor(0.1)), operator.AT(y)


@pytest.fixture
def learned(rng) -> tuple[Objective, Tensor]:
    return problem(cases.regularizer("least_squares"), 3, rng)


@pytest.mark.parametrize("step", [0.25, 1.0, 4.0, 64.0])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_quadratic_energy_is_solved_to_its_closed_form(method, step, rng):
    energy = Quadratic(torch.tensor(1.3, dtype=torch.float64))
    objective, x0 = problem(energy, 2, rng)
    solution = solve(method, objective, x0, torch.tensor(step), tol=1e-12, max_steps=2000)
    # (AᵀA + λ D) x = Aᵀy, with D a multiple of the identity.
    weight = float(objective.weight) * 1.3
    operator, back = objective.fidelity.operator, objective.fidelity.back_projection
    exact = operator.shifted_solve(back / weight, torch.tensor(1 / weight, dtype=torch.float64))
    assert solution.usable.all()
    torch.testing.assert_close(solution.x, exact, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_energy_never_rises(method, learned):
    objective, x0 = learned
    energies = torch.stack([s.energy for s in islice(iterates(method, objective, x0, torch.tensor(30.0)), 40)])
    assert (energies.diff(dim=0) <= 0).all()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_converged_solve_is_at_a_critical_point(method, learned):
    objective, x0 = learned
    solution = solve(method, objective, x0, torch.tensor(2.0), tol=1e-6, max_steps=3000)
    assert solution.usable.all()
    # (x − p)/τ = λ∇h(x) + ∇g(p) for the proposal p, and ‖AᵀA‖ <= 1.
    bound = (1 / solution.step + 1) * solution.residual * solution.x.flatten(1).norm(dim=1)
    assert (objective.grad(solution.x).flatten(1).norm(dim=1) <= bound * (1 + 1e-9)).all()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_batch_gives_its_images_one_by_one(method, learned):
    objective, x0 = learned
    together = solve(method, objective, x0, torch.tensor(8.0), tol=1e-5, max_steps=500)
    for i in range(len(x0)):
        index = torch.tensor([i])
        alone = solve(method, objective.select(index), x0[index], torch.tensor(8.0), tol=1e-5, max_steps=500)
        torch.testing.assert_close(alone.x, together.x[index], rtol=1e-8, atol=1e-8)
        assert alone.steps == together.steps[i]
        assert alone.evaluations == together.evaluations[i]
        torch.testing.assert_close(alone.energy, together.energy[index])


def test_an_accepted_step_costs_one_evaluation(rng):
    energy = Quadratic(torch.tensor(1.0, dtype=torch.float64))
    objective, x0 = problem(energy, 1, rng)
    solution = solve(ProximalGradient(), objective, x0, torch.tensor(0.5), tol=1e-7, max_steps=500)
    assert solution.status == (Status.CONVERGED,)
    assert energy.calls == int(solution.evaluations) == int(solution.steps) + 1


def test_a_rejected_extrapolation_costs_one_evaluation_more(rng):
    energy = Quadratic(torch.logspace(-2, 0, 108, dtype=torch.float64).view(1, 1, 9, 12))
    objective, x0 = problem(energy, 1, rng)
    solution = solve(Anderson(), objective, x0, torch.tensor(0.5), tol=1e-7, max_steps=500)
    assert solution.status == (Status.CONVERGED,)
    assert energy.calls == int(solution.evaluations)
    assert int(solution.steps) + 1 <= energy.calls <= 2 * int(solution.steps) + 1


def test_a_step_too_long_is_shortened(rng):
    energy = Quadratic(torch.tensor(1.0, dtype=torch.float64))
    objective, x0 = problem(energy, 2, rng)
    solution = solve(ProximalGradient(), objective, x0, torch.tensor(1000.0), tol=1e-9, max_steps=500)
    # Sufficient decrease holds below 2(1 − γ)/(λL) whatever the data term.
    assert (solution.step < 1000).all()
    assert (solution.step > 0.5 * 2 * 0.9 / 0.5 / 4).all()
    assert solution.monotone.all()


def test_acceleration_saves_evaluations(rng):
    # Conditioned badly: the slowest direction is a hundred times flatter than the fastest.
    diagonal = torch.logspace(-2, 0, 108, dtype=torch.float64).view(1, 1, 9, 12)
    objective, x0 = problem(Quadratic(diagonal), 1, rng)
    plain, *accelerated = (
        solve(method, objective, x0, torch.tensor(2.0), tol=1e-6, max_steps=3000) for method in METHODS.values()
    )
    for fast in accelerated:
        assert plain.status == fast.status == (Status.CONVERGED,)
        assert int(fast.evaluations) <= int(plain.evaluations) // 2


def test_stopping_early_is_said(learned):
    objective, x0 = learned
    solution = solve(Anderson(), objective, x0, torch.tensor(2.0), tol=1e-14, max_steps=3)
    assert set(solution.status) == {Status.MAX_STEPS}
    assert not solution.usable.any()
    assert (solution.steps == 3).all()


def test_the_end_of_precision_is_said(rng):
    objective, x0 = problem(Quadratic(torch.logspace(-1, 0, 108).view(1, 1, 9, 12)), 2, rng)
    operator = MaskedFourier(objective.fidelity.operator.mask.float())
    fidelity = LeastSquares.of(operator, objective.fidelity.y.to(torch.complex64))
    single = replace(objective, fidelity=fidelity, weight=objective.weight.float())
    solution = solve(Anderson(), single, x0.float(), torch.tensor(2.0), tol=1e-12, max_steps=500)
    assert set(solution.status) == {Status.PRECISION}
    assert solution.monotone.all()
    assert (solution.residual < 1e-4).all()


def test_a_non_finite_energy_is_said(rng):
    objective, x0 = problem(Quadratic(torch.tensor(torch.nan, dtype=torch.float64)), 2, rng)
    assert set(solve(Anderson(), objective, x0, torch.tensor(1.0)).status) == {Status.NOT_FINITE}


@pytest.mark.parametrize("options", [{"decrease": 0.0}, {"decrease": 1.0}, {"shrink": 1.5}])
def test_bad_hyperparameters_name_themselves(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ProximalGradient(**options)


def symmetric(n: int, eigenvalues: Tensor, rng: torch.Generator) -> Tensor:
    q, _ = torch.linalg.qr(cases.randn((n, n), rng))
    return q @ torch.diag(eigenvalues) @ q.T


@pytest.mark.parametrize("signs", ["definite", "indefinite"])
def test_minres_solves_each_system_of_a_batch(signs, rng):
    n = 24
    spectrum = torch.logspace(-1, 1, n, dtype=torch.float64)
    if signs == "indefinite":
        spectrum[::3] *= -1
    matrices = torch.stack([symmetric(n, spectrum * s, rng) for s in (1.0, 0.3)])
    b = cases.randn((2, 1, 4, 6), rng)
    diagonal = matrices.diagonal(dim1=1, dim2=2).abs() + 1

    def product(v: Tensor) -> Tensor:
        return (matrices @ v.flatten(1).unsqueeze(2)).view_as(v)

    found = minres(product, b, lambda r: r / diagonal.view_as(r), tol=1e-10, max_steps=200)
    exact = torch.linalg.solve(matrices, b.flatten(1).unsqueeze(2)).view_as(b)
    assert found.converged.all()
    torch.testing.assert_close(found.v, exact, rtol=1e-6, atol=1e-6)


def test_minres_says_when_it_did_not_converge(rng):
    matrix = symmetric(24, torch.logspace(-6, 1, 24, dtype=torch.float64), rng)
    b = cases.randn((1, 1, 4, 6), rng)
    found = minres(lambda v: (matrix @ v.flatten()).view_as(v), b, lambda r: r, tol=1e-10, max_steps=4)
    assert not found.converged.any()
    assert found.residual > 1e-3
