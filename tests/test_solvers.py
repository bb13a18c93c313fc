"""Solvers: closed forms, descent, honesty, cost."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, islice

import cases
import pytest
import torch
from torch import Tensor

from elder import spectral
from elder.fidelity import HardConstraint, LeastSquares
from elder.linear import GMRES, JACOBIAN_FREE, MINRES, AndersonFixedPoint, FixedPoint, Neumann
from elder.objective import Equation, Objective, make_objective
from elder.operators import MaskedFourier
from elder.problems import masks
from elder.regularizers.base import Energy, Regularizer
from elder.solvers import (
    Anderson,
    AndersonMixing,
    Inertial,
    LineSearch,
    Picard,
    ProximalGradient,
    Status,
    fixed_point,
    iterates,
    loop,
    path,
    solve,
)
from elder.tensors import dot

METHODS = {"proximal gradient": ProximalGradient(), "inertial": Inertial(), "anderson": Anderson()}


def natural(x: Tensor) -> Tensor:
    """W x, W the metric of natural pictures."""
    return spectral.fourier_multiplier(x, spectral.natural_image_weights((x.shape[-2], x.shape[-1]), x))


class Natural(Energy):
    """h(x) = ½⟨x, W x⟩, W the metric of natural pictures."""

    def value(self, x: Tensor, sigma: Tensor) -> Tensor:
        return dot(x, natural(x)) / 2

    def value_and_grad(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(x, sigma), natural(x)


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
    weight = float(objective.lambda_reg) * 1.3
    operator, back = objective.fidelity.operator, objective.fidelity.back_projection
    exact = operator.prox_solve(back / weight, torch.tensor(1 / weight, dtype=torch.float64))
    assert solution.succeeded.all()
    torch.testing.assert_close(solution.x, exact, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_energy_never_rises(method, learned):
    objective, x0 = learned
    energies = torch.stack(
        [s.energy for s in islice(iterates(method, objective, x0, torch.tensor(30.0)), 40) if s.energy is not None]
    )
    assert (energies.diff(dim=0) <= 0).all()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_converged_solve_is_at_a_critical_point(method, learned):
    objective, x0 = learned
    solution = solve(method, objective, x0, torch.tensor(2.0), tol=1e-6, max_steps=3000)
    assert solution.succeeded.all()
    # (x − p)/τ = λ∇h(x) + ∇g(p) for the proposal p, and ‖AᵀA‖ <= 1.
    bound = (1 / solution.step + 1) * solution.residual * solution.x.flatten(1).norm(dim=1)
    assert (objective.grad(solution.x).flatten(1).norm(dim=1) <= bound * (1 + 1e-9)).all()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_metric_changes_the_way_and_not_the_end(method, rng):
    objective, x0 = problem(Quadratic(torch.logspace(-1, 0, 108, dtype=torch.float64).view(1, 1, 9, 12)), 2, rng)
    natural = objective.with_natural_metric()
    for start in (x0, solve(method, objective, x0, torch.tensor(2.0), tol=1e-9, max_steps=3000).x):
        solution = solve(method, natural, start, torch.tensor(2.0), tol=1e-7, max_steps=3000)
        assert solution.succeeded.all()
        assert solution.monotone.all()
        assert float(objective.grad(solution.x).detach().abs().max()) < 1e-6
    assert (solution.steps == 0).all()


def test_a_step_in_the_metric_solves_its_proximal_problem(learned):
    objective, x0 = learned
    tau, slope = torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64), objective.reg_grad(x0)
    for posed in (objective, objective.with_natural_metric()):
        p = posed.step(x0, slope, tau)
        pull = p - x0 if posed.metric is None else spectral.fourier_multiplier(p - x0, posed.metric)
        gradient = objective.fidelity.grad(p) + slope + pull / tau.view(-1, 1, 1, 1)
        torch.testing.assert_close(gradient, torch.zeros_like(p), rtol=0, atol=1e-12)
        torch.testing.assert_close(posed.square(p - x0), dot(p - x0, pull))


def test_a_reconstruction_goes_in_the_metric_where_there_is_a_closed_form(rng):
    objective, x0 = problem(Natural(), 2, rng)
    found = fixed_point(objective, x0, torch.tensor(2.0), tol=1e-9)
    # λ = 1/2 and τ = 2: the curvature that the metric expects, so that the start and one step are a Newton step.
    assert (found.evaluations <= 3).all()
    assert (found.step == 2).all()
    euclidean = solve(Anderson(), objective, x0, torch.tensor(2.0), tol=1e-9)
    assert (euclidean.evaluations > 6).all()
    torch.testing.assert_close(found.x, euclidean.x, rtol=0, atol=1e-6)
    shape = (2, 1, 9, 12)
    for operator in (cases.masking(shape, rng), cases.radon(shape, rng)):
        y = operator.A(cases.randn(shape, rng))
        assert replace(objective, fidelity=LeastSquares.of(operator, y)).with_natural_metric().metric is None
    operator = cases.masking(shape, rng)
    assert replace(objective, fidelity=HardConstraint.of(operator, operator.A(x0))).with_natural_metric().metric is None


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
    assert not solution.succeeded.any()
    assert (solution.steps == 3).all()


@pytest.mark.parametrize("limit", [3.0, 0.0])
def test_a_time_limit_ends_a_solve_between_two_steps(limit, learned, monkeypatch):
    """By a clock that moves on by a second whenever it is read: once at the start, then before each step."""
    clock = count()
    monkeypatch.setattr(loop, "monotonic", lambda: float(next(clock)))
    objective, x0 = learned
    stopped = solve(Anderson(), objective, x0, torch.tensor(2.0), tol=1e-14, time_limit=limit)
    assert set(stopped.status) == {Status.TIME_LIMIT}
    assert "allow more time" in Status.TIME_LIMIT.advice
    assert not stopped.succeeded.any()
    taken = max(int(limit) - 1, 0)
    assert stopped.steps.tolist() == [taken] * len(x0)
    free = list(islice(iterates(Anderson(), objective, x0, torch.tensor(2.0)), taken + 1))
    assert torch.equal(stopped.x, free[-1].x)


def test_an_image_that_converges_in_time_is_no_late_one(learned, monkeypatch):
    """A solve that has ended when the limit is reached says how, and so does one that ends with it."""
    objective, x0 = learned
    usual = solve(Anderson(), objective, x0, torch.tensor(2.0), tol=1e-6)
    assert len(set(usual.steps.tolist())) > 1
    clock = count()
    monkeypatch.setattr(loop, "monotonic", lambda: float(next(clock)))
    limit = float(usual.steps.min()) + 1  # the clock reads k + 1 before step k + 1
    stopped = solve(Anderson(), objective, x0, torch.tensor(2.0), tol=1e-6, time_limit=limit)
    for before, now, why in zip(usual.steps, stopped.steps, stopped.status, strict=True):
        assert int(now) == int(usual.steps.min())
        assert why is (Status.CONVERGED if before == usual.steps.min() else Status.TIME_LIMIT)


def test_the_end_of_precision_is_said(rng):
    objective, x0 = problem(Quadratic(torch.logspace(-1, 0, 108).view(1, 1, 9, 12)), 2, rng)
    operator = MaskedFourier(objective.fidelity.operator.mask.float())
    fidelity = LeastSquares.of(operator, objective.fidelity.y.to(torch.complex64))
    single = replace(objective, fidelity=fidelity, lambda_reg=objective.lambda_reg.float())
    solution = solve(Anderson(), single, x0.float(), torch.tensor(2.0), tol=1e-12, max_steps=500)
    assert set(solution.status) == {Status.PRECISION}
    assert solution.monotone.all()
    assert (solution.residual < 1e-4).all()


class Raised(Quadratic):
    """With a constant so large that float32 holds no more of the quadratic than its first digits."""

    def value(self, x: Tensor, sigma: Tensor) -> Tensor:
        return super().value(x, sigma) + 1e4


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("step", [2.0, 50.0], ids=["short", "too long"])
def test_a_decrease_below_the_rounding_of_the_energy_is_told_by_the_gradients(method, step, rng):
    diagonal = torch.logspace(-1, 0, 108, dtype=torch.float64).view(1, 1, 9, 12)
    exact, x0 = problem(Quadratic(diagonal), 2, rng)
    expected = solve(method, exact, x0, torch.tensor(2.0), tol=1e-9, max_steps=2000).x
    operator = MaskedFourier(exact.fidelity.operator.mask.float())
    fidelity = LeastSquares.of(operator, exact.fidelity.y.to(torch.complex64))
    rounded = Objective(fidelity, Raised(diagonal.float()), exact.lambda_reg, exact.sigma)
    solution = solve(method, rounded, x0.float(), torch.tensor(step), tol=1e-5, max_steps=2000)
    assert set(solution.status) == {Status.CONVERGED}
    assert solution.monotone.all()
    torch.testing.assert_close(solution.x.double(), expected, atol=1e-3, rtol=0)
    # Steps that the curvature forbids are found out by the gradients, where the values are blind.
    assert (solution.step < 2 / 0.5).all()


class Kinked(Quadratic):
    """Its gradient points uphill: no step along it lowers the energy."""

    def value_and_grad(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = super().value_and_grad(x, sigma)
        return value, -10 * gradient


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_place_without_descent_is_no_solution(method, rng):
    objective, x0 = problem(Kinked(torch.tensor(1.0, dtype=torch.float64)), 2, rng)
    solution = solve(method, objective, x0, torch.tensor(2.0), tol=1e-6, max_steps=50)
    assert set(solution.status) == {Status.STALLED}
    assert not solution.succeeded.any()
    assert (solution.step == 2.0).all()


def test_a_non_finite_energy_is_said(rng):
    objective, x0 = problem(Quadratic(torch.tensor(torch.nan, dtype=torch.float64)), 2, rng)
    assert set(solve(Anderson(), objective, x0, torch.tensor(1.0)).status) == {Status.NOT_FINITE}


class Twisted(Regularizer):
    """R(x) = D x + a rotation of neighboring pixels: the gradient of no function. It counts its evaluations."""

    def __init__(self, twist: float) -> None:
        super().__init__()
        self.twist = twist
        self.calls = 0

    def gradient(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return x + self.twist * (x.roll(1, -1) - x.roll(-1, -1))


@pytest.fixture
def twisted(rng) -> tuple[Equation, Tensor]:
    objective, x0 = problem(Quadratic(torch.tensor(1.0, dtype=torch.float64)), 3, rng)
    return Equation(objective.fidelity, Twisted(0.4), objective.lambda_reg, objective.sigma), x0


@pytest.mark.parametrize("method", [Picard(), AndersonMixing()], ids=["picard", "anderson mixing"])
class TestWithoutAnEnergy:
    def test_it_finds_the_solution_and_claims_no_energy(self, method, twisted):
        equation, x0 = twisted
        solution = solve(method, equation, x0, torch.tensor(1.0), tol=1e-11, max_steps=500)
        assert set(solution.status) == {Status.CONVERGED}
        assert float(equation.grad(solution.x).abs().max()) < 1e-9
        assert solution.energy is None
        assert solution.monotone is None

    def test_a_batch_gives_its_images_one_by_one(self, method, twisted):
        equation, x0 = twisted
        together = solve(method, equation, x0, torch.tensor(1.0), tol=1e-7, max_steps=500)
        for i in range(len(x0)):
            index = torch.tensor([i])
            alone = solve(method, equation.select(index), x0[index], torch.tensor(1.0), tol=1e-7, max_steps=500)
            torch.testing.assert_close(alone.x, together.x[index])
            assert alone.steps == together.steps[i]

    def test_a_step_costs_one_evaluation(self, method, twisted):
        equation, x0 = twisted
        solution = solve(method, equation.select(torch.tensor([0])), x0[:1], torch.tensor(1.0), tol=1e-7)
        assert equation.regularizer.calls == int(solution.evaluations) == int(solution.steps) + 1

    def test_divergence_is_said(self, method, twisted):
        equation, x0 = twisted
        wild = replace(equation, regularizer=Twisted(1e200))
        assert set(solve(method, wild, x0, torch.tensor(1.0), max_steps=9).status) == {Status.NOT_FINITE}


def test_mixing_saves_evaluations(twisted):
    equation, x0 = twisted
    plain = solve(Picard(), equation, x0, torch.tensor(0.3), tol=1e-8, max_steps=2000)
    mixed = solve(AndersonMixing(), equation, x0, torch.tensor(0.3), tol=1e-8, max_steps=2000)
    assert (mixed.evaluations <= plain.evaluations // 2).all()


def test_the_method_follows_from_what_there_is(twisted, learned):
    equation, x0 = twisted
    posed = make_objective(equation.fidelity, equation.regularizer, equation.lambda_reg, equation.sigma)
    assert type(posed) is Equation
    assert fixed_point(posed, x0, torch.tensor(1.0)).energy is None
    assert next(path(posed, x0, torch.tensor(1.0))).energy is None
    objective, x0 = learned
    posed = make_objective(objective.fidelity, objective.regularizer, objective.lambda_reg, objective.sigma)
    assert type(posed) is Objective
    assert fixed_point(posed, x0, torch.tensor(8.0)).monotone.all()


@pytest.mark.parametrize("method", [Anderson, AndersonMixing])
def test_a_depth_that_remembers_nothing_is_refused(method):
    with pytest.raises(ValueError, match=r"depth=.*at least 2; got 1"):
        method(depth=1)


@pytest.mark.parametrize("options", [{"decrease": 0.0}, {"decrease": 1.0}, {"shrink": 1.5}])
def test_bad_hyperparameters_name_themselves(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ProximalGradient(LineSearch(**options))


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

    found = MINRES(tol=1e-10, max_steps=200)(product, b, lambda r: r / diagonal.view_as(r))
    exact = torch.linalg.solve(matrices, b.flatten(1).unsqueeze(2)).view_as(b)
    assert found.converged.all()
    torch.testing.assert_close(found.v, exact, rtol=1e-6, atol=1e-6)


def test_minres_says_when_it_did_not_converge(rng):
    matrix = symmetric(24, torch.logspace(-6, 1, 24, dtype=torch.float64), rng)
    b = cases.randn((1, 1, 4, 6), rng)
    found = MINRES(tol=1e-10, max_steps=4)(lambda v: (matrix @ v.flatten()).view_as(v), b, lambda r: r)
    assert not found.converged.any()
    assert found.residual > 1e-3


@pytest.fixture
def unsymmetric(rng) -> tuple[Tensor, Tensor]:
    """Two well-posed matrices near the identity that are not symmetric, and a right-hand side."""
    return torch.eye(24, dtype=torch.float64) + 0.12 * cases.randn((2, 24, 24), rng), cases.randn((2, 1, 4, 6), rng)


@pytest.mark.parametrize("solver", [GMRES(1e-10), FixedPoint(1e-10, 500), AndersonFixedPoint(1e-10, 200)], ids=str)
def test_unsymmetric_systems_are_solved(solver, unsymmetric):
    matrices, b = unsymmetric
    calls = []

    def product(v: Tensor) -> Tensor:
        calls.append(1)
        return (matrices @ v.flatten(1).unsqueeze(2)).view_as(v)

    found = solver(product, b, lambda r: 0.9 * r)
    exact = torch.linalg.solve(matrices, b.flatten(1).unsqueeze(2)).view_as(b)
    assert found.converged.all()
    torch.testing.assert_close(found.v, exact, rtol=1e-7, atol=1e-7)
    assert len(calls) == found.products


def test_minres_is_no_solver_of_unsymmetric_systems(unsymmetric):
    matrices, b = unsymmetric
    found = MINRES(1e-10, 200)(lambda v: (matrices @ v.flatten(1).unsqueeze(2)).view_as(v), b, lambda r: r)
    assert not found.converged.any()


@pytest.mark.parametrize("steps", [1, 3, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("solver", [MINRES, GMRES, FixedPoint, AndersonFixedPoint])
def test_the_residual_is_the_true_one_and_costs_no_product(solver, dtype, steps, rng):
    spectrum = torch.linspace(0.5, 1.5, 24, dtype=torch.float64)
    matrices = torch.stack([symmetric(24, spectrum * s, rng) for s in (1.0, 0.3)]).to(dtype)
    b = cases.randn((2, 1, 4, 6), rng).to(dtype)
    calls = []

    def product(v: Tensor) -> Tensor:
        calls.append(1)
        return (matrices @ v.flatten(1).unsqueeze(2)).view_as(v)

    found = solver(1e-5, steps)(product, b, lambda r: 0.9 * r)
    assert len(calls) == found.products <= steps
    residual = (b - product(found.v)).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
    torch.testing.assert_close(found.residual, residual.double(), rtol=1e-3, atol=10 * torch.finfo(dtype).eps)
    assert (found.usable == (residual <= 1e-4)).all()
    if solver is MINRES:  # which stops by the norm of its preconditioner
        assert not (found.converged & ~found.usable).any()
        assert found.converged.all() == (steps == 60)
    else:
        assert (found.converged == (residual <= 1e-5)).all()


@pytest.mark.parametrize("terms", [0, 1, 4])
def test_the_neumann_series_is_cut_off_where_it_says(terms, unsymmetric):
    matrices, b = unsymmetric
    found = Neumann(terms)(lambda v: (matrices @ v.flatten(1).unsqueeze(2)).view_as(v), b, lambda r: 0.9 * r)
    rest = torch.eye(24, dtype=torch.float64) - 0.9 * matrices
    series = sum(torch.linalg.matrix_power(rest, k) for k in range(terms + 1))
    torch.testing.assert_close(found.v, 0.9 * (series @ b.flatten(1).unsqueeze(2)).view_as(b))
    assert found.usable.all()
    assert not found.converged.any()
    assert (found.residual > 1e-3).all()
    assert Neumann(0) == JACOBIAN_FREE


@pytest.mark.parametrize("solver", [GMRES, FixedPoint, AndersonFixedPoint, MINRES])
def test_bad_tolerances_name_themselves(solver):
    with pytest.raises(ValueError, match=f"{solver.__name__} needs tol > 0"):
        solver(tol=0.0)
    with pytest.raises(ValueError, match="must not be negative"):
        Neumann(-1)


def test_a_reconstruction_starts_in_agreement_with_the_measurement(learned):
    objective, x0 = learned
    noisy, step = x0 + 1, torch.tensor(8.0)
    first = next(path(objective, noisy, step))
    torch.testing.assert_close(first.x, objective.fidelity.prox(noisy, step))
    assert (first.evaluations == 1).all()
    solution = fixed_point(objective, noisy, step, tol=1e-6)
    torch.testing.assert_close(solution.energies[:, 0], objective.value(first.x))
