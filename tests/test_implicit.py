"""The implicit gradient equals the unrolled one and finite differences, at the closed form and for learned energies."""

from __future__ import annotations

import cases
import pytest
import torch
from torch import Tensor

from elder.fidelity import LeastSquares
from elder.implicit import ImplicitGradient
from elder.objective import Objective
from elder.operators import MaskedFourier
from elder.problems import masks
from elder.solvers import Anderson, solve

SIZE = (8, 7)
# A step τ under 2/(λL) for each energy, so that unrolling converges.
STEPS = {"least_squares": 2.0, "convex_ridge": 0.4}


class Setup:
    """A tiny reconstruction in float64 whose fixed point is known to many digits."""

    def __init__(self, kind: str, rng: torch.Generator) -> None:
        self.step = torch.tensor(STEPS[kind], dtype=torch.float64)
        self.energy = cases.regularizer(kind)
        mask = torch.stack([masks.radial(SIZE, 0.4, rng).double() for _ in range(2)]).unsqueeze(1)
        operator = MaskedFourier(mask)
        self.truth = torch.rand((2, 1, *SIZE), generator=rng, dtype=torch.float64)
        self.fidelity = LeastSquares.of(operator, operator.A(self.truth))
        self.log_weight = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
        self.log_sigma = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)

    @property
    def theta(self) -> list[Tensor]:
        return [*self.energy.parameters(), self.log_weight, self.log_sigma]

    def objective(self) -> Objective:
        return Objective(self.fidelity, self.energy, self.log_weight.exp(), self.log_sigma.exp())

    def fixed_point(self) -> Tensor:
        solution = solve(
            Anderson(), self.objective(), self.fidelity.back_projection, torch.tensor(1.0), tol=1e-13, max_steps=4000
        )
        assert solution.usable.all()
        x = solution.x
        # Newton's method to the last digit: the finite differences see all of them.
        for _ in range(4):
            x = x.detach()
            hessian = torch.autograd.functional.jacobian(lambda z: self.objective().grad(z), x).view(x.numel(), -1)
            x = x - torch.linalg.solve(hessian, self.objective().grad(x).flatten()).view_as(x)
        return x.detach()

    def loss(self, x: Tensor) -> Tensor:
        return (x - self.truth).square().sum()


@pytest.fixture(params=STEPS)
def setup(request, rng) -> Setup:
    return Setup(request.param, rng)


def implicit(setup: Setup, method: ImplicitGradient) -> list[Tensor]:
    x, backward = method.attach(setup.objective(), setup.fixed_point())
    gradient = torch.autograd.grad(setup.loss(x), setup.theta, materialize_grads=True)
    assert backward.solution.converged.all()
    return list(gradient)


def relative(a: list[Tensor], b: list[Tensor]) -> float:
    gap = sum(float((p - q).square().sum()) for p, q in zip(a, b, strict=True))
    return (gap / sum(float(q.square().sum()) for q in b)) ** 0.5


def unrolled(setup: Setup) -> list[Tensor]:
    """Through many plain steps that autograd records, from the fixed point itself."""
    objective, x, step = setup.objective(), setup.fixed_point(), setup.step
    for _ in range(3000):
        slope = objective.weight * objective.regularizer.grad(x, objective.sigma)
        x = objective.fidelity.prox(x - step * slope, step)
    return list(torch.autograd.grad(setup.loss(x), setup.theta, materialize_grads=True))


def test_it_equals_finite_differences(setup):
    gradient = implicit(setup, ImplicitGradient(tol=1e-10, max_steps=500))
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in setup.theta]
        slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
        values = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                for p, d in zip(setup.theta, direction, strict=True):
                    p.add_(1e-5 * sign * d)
            if sign != 1 or len(values) < 1:
                values.append(float(setup.loss(setup.fixed_point())))
        difference = (values[0] - values[1]) / 2e-5
        assert difference == pytest.approx(slope, rel=1e-4)


def test_it_equals_unrolling(setup):
    assert relative(implicit(setup, ImplicitGradient(tol=1e-10, max_steps=500)), unrolled(setup)) < 1e-4


def test_a_loose_solve_is_near(setup):
    exact = implicit(setup, ImplicitGradient(tol=1e-10, max_steps=500))
    assert relative(implicit(setup, ImplicitGradient(tol=1e-3)), exact) < 1e-2


def test_leaving_out_the_curvature_of_the_regulariser_is_caught(setup):
    """H = ∇²g + I in place of ∇²g + λ∇²h, as a Jacobian-free gradient has it, is another gradient."""
    exact = implicit(setup, ImplicitGradient(tol=1e-10, max_steps=500))
    x = setup.fixed_point()
    objective = setup.objective()
    slope = objective.weight * objective.regularizer.grad(x, objective.sigma)
    wrong = torch.autograd.grad(slope, setup.theta, -2 * (x - setup.truth), materialize_grads=True)
    assert relative(list(wrong), exact) > 0.1


def test_the_value_is_untouched(setup):
    x = setup.fixed_point()
    attached, _ = ImplicitGradient().attach(setup.objective(), x)
    assert torch.equal(attached.detach(), x)


def test_an_image_whose_solve_failed_is_left_out_and_counted(setup):
    x = setup.fixed_point()
    attached, backward = ImplicitGradient(tol=1e-14, max_steps=1).attach(setup.objective(), x)
    gradient = torch.autograd.grad(setup.loss(attached), setup.theta, materialize_grads=True)
    assert backward.skipped == 2
    assert all(float(g.abs().max()) == 0 for g in gradient)


def test_bad_settings_name_themselves():
    with pytest.raises(ValueError, match="tol"):
        ImplicitGradient(tol=0)
