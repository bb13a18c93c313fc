"""The implicit gradient equals the unrolled one and finite differences, for every regularizer, data term and solver."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import cases
import pytest
import torch
from torch import Tensor

from elder import spectral
from elder.fidelity import Fidelity, HardConstraint, LeastSquares
from elder.implicit import ImplicitGradient, Linearization
from elder.linear import GMRES, JACOBIAN_FREE, MINRES, AndersonFixedPoint, FixedPoint, LinearSolver, Map, Neumann
from elder.objective import Equation, Equilibrium, make_objective
from elder.regularizers import EXPLICIT, Energy, Regularizer
from elder.tensors import dot

GRAY, COLOR = (2, 1, 8, 6), (1, 3, 4, 6)
STEP = torch.tensor(1.0, dtype=torch.float64)

REGULARIZERS = [
    *[(kind, "dncnn", GRAY) for kind in ("implicit", "least_squares", "red", "scalar")],
    *[(kind, "drunet", GRAY) for kind in ("implicit", "least_squares")],
    ("least_squares", "drunet, softplus", GRAY),
    *[(kind, "", GRAY) for kind in ("convex_ridge", "weakly_convex_ridge", "total_variation")],
    *[(kind, "dncnn", COLOR) for kind in ("implicit", "least_squares")],
    ("weakly_convex_ridge", "", COLOR),
]
# Their energy differs from that of the other ridges in the filters and profiles alone: a few data terms suffice.
SPLINES = [("crr", "", GRAY, "csmri"), ("wcrr", "", COLOR, "inpaint, exactly")]
OPERATORS = {
    "denoise": cases.OPERATORS["identity"],
    "csmri": cases.OPERATORS["fourier radial"],
    "deblur": cases.OPERATORS["blurs"],
    "superres": cases.DECIMATING["blur, every 2"][1],
    "inpaint": cases.OPERATORS["masking"],
    "inpaint, exactly": cases.OPERATORS["masking"],
    "ct": cases.OPERATORS["radon"],
}
SYMMETRIC: dict[str, LinearSolver] = {"minres": MINRES(1e-10, 500)}
GENERAL: dict[str, LinearSolver] = {
    "gmres": GMRES(1e-10, 80),
    "anderson": AndersonFixedPoint(1e-10, 300),
    "fixed point": FixedPoint(1e-10, 2000),
    "neumann": Neumann(400),
}


class Anchored(Regularizer):
    """αR(x) + x with ‖αR'‖ = 0.3 at x0: whatever the network, one fixed point, and plain iterations that find it."""

    def __init__(self, inner: Regularizer, x0: Tensor) -> None:
        super().__init__()
        self.inner = inner
        jacobian = torch.autograd.functional.jacobian(lambda x: inner.gradient(x, torch.tensor(0.1)), x0)
        self.share = 0.3 / float(torch.linalg.matrix_norm(jacobian.view(x0.numel(), -1), ord=2))

    def gradient(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.share * self.inner.gradient(x, sigma) + x


class AnchoredEnergy(Anchored, Energy):
    """αh(x) + ½‖x‖²."""

    inner: Energy

    def value(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.share * self.inner.value(x, sigma) + dot(x, x) / 2

    gradient = Anchored.gradient


class Natural(Regularizer):
    """R(x) = a W x, W the metric of natural pictures and a = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def gradient(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.a * spectral.fourier_multiplier(x, spectral.natural_image_weights((x.shape[-2], x.shape[-1]), x))


class Untransposed(Linearization):
    """A record whose products are with H where they should be with its transpose."""

    def transposed(self, v: Tensor) -> Tensor:
        return self.problem.fidelity.hessian(v) + self.derivative(v)


class Setup:
    """A tiny reconstruction in float64 whose fixed point, unrolled gradient and finite differences are known."""

    def __init__(self, kind: str, network: str, shape: cases.Shape, name: str) -> None:
        rng = torch.Generator().manual_seed(11)
        anchored = AnchoredEnergy if kind in EXPLICIT else Anchored
        operator: Any = OPERATORS[name](shape, rng)
        self.truth = torch.rand(shape, generator=rng, dtype=torch.float64)
        self.regularizer = anchored(cases.regularizer(kind, network, shape[1]), self.truth)
        data_term = HardConstraint if "exactly" in name else LeastSquares
        self.fidelity: Fidelity = data_term.of(operator, operator.A(self.truth))
        self.log_lambda = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
        self.log_sigma = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
        self.fixed_point = self.iterate(self.truth)

    @property
    def theta(self) -> list[Tensor]:
        return [*self.regularizer.parameters(), self.log_lambda, self.log_sigma]

    def problem(self) -> Equilibrium:
        return make_objective(self.fidelity, self.regularizer, self.log_lambda.exp(), self.log_sigma.exp())

    @torch.no_grad()
    def iterate(self, x: Tensor, most: int = 500) -> Tensor:
        """Plain steps until nothing moves."""
        problem = self.problem()
        old = x
        for _ in range(most):
            x, old = problem.fidelity.prox(x - STEP * problem.reg_grad(x), STEP), x
            if float((x - old).abs().max()) < 1e-14:
                return x
        raise AssertionError(f"no fixed point after {most} steps: {float((x - old).abs().max()):.1e}")

    def loss(self, x: Tensor) -> Tensor:
        return (x - self.truth).square().sum()

    def implicit(self, solver: LinearSolver) -> list[Tensor]:
        x, backward = ImplicitGradient(solver).attach(self.problem(), self.fixed_point, STEP)
        gradient = torch.autograd.grad(self.loss(x), self.theta, materialize_grads=True)
        assert backward.solution.usable.all()
        assert backward.solution.converged.all() != isinstance(solver, Neumann)
        return list(gradient)

    def implicit_approximately(self, solver: LinearSolver) -> list[Tensor]:
        x, _ = ImplicitGradient(solver).attach(self.problem(), self.fixed_point, STEP)
        return list(torch.autograd.grad(self.loss(x), self.theta, materialize_grads=True))

    def unrolled(self, steps: int = 120) -> list[Tensor]:
        """Through plain steps that autograd records, from the fixed point itself."""
        problem, x = self.problem(), self.fixed_point
        for _ in range(steps):
            x = problem.fidelity.prox(x - STEP * problem.reg_grad(x), STEP)
        return list(torch.autograd.grad(self.loss(x), self.theta, materialize_grads=True))

    def difference(self, direction: list[Tensor], length: float = 1e-6) -> float:
        """The slope of the loss along a direction in θ, by solving again on either side."""
        values = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                for p, d in zip(self.theta, direction, strict=True):
                    p.add_(length * sign * d)
            values.append(float(self.loss(self.iterate(self.fixed_point))))
        return (values[0] - values[1]) / (2 * length)


@cache
def setup_of(kind: str, network: str, shape: cases.Shape, name: str) -> Setup:
    return Setup(kind, network, shape, name)


def relative(a: list[Tensor], b: list[Tensor]) -> float:
    gap = sum(float((p - q).square().sum()) for p, q in zip(a, b, strict=True))
    return (gap / sum(float(q.square().sum()) for q in b)) ** 0.5


@pytest.mark.parametrize(
    ("kind", "network", "shape", "name"), [(*which, name) for which in REGULARIZERS for name in OPERATORS] + SPLINES
)
def test_it_equals_unrolling_and_finite_differences(kind, network, shape, name):
    setup = setup_of(kind, network, shape, name)
    unrolled = setup.unrolled()
    solvers = {**GENERAL, **(SYMMETRIC if kind in EXPLICIT else {})}
    for label, solver in solvers.items():
        assert relative(setup.implicit(solver), unrolled) < 1e-4, label
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in setup.theta]
    slope = sum(float((g * d).sum()) for g, d in zip(unrolled, direction, strict=True))
    assert setup.difference(direction) == pytest.approx(slope, rel=1e-4)


@pytest.fixture
def setup() -> Setup:
    return setup_of("least_squares", "dncnn", GRAY, "csmri")


def test_krylov_solvers_are_preconditioned_in_the_metric_of_natural_pictures(setup):
    """Where λ∇²h = W/τ the preconditioner is the inverse, and one product is all."""
    x, truth = setup.fixed_point, setup.truth
    problem = Equation(setup.fidelity, Natural(), torch.tensor(0.5), torch.tensor(0.1))
    for solver, most in ((MINRES(1e-10), 1), (GMRES(1e-10), 1), (FixedPoint(1e-10), 100)):
        attached, backward = ImplicitGradient(solver).attach(problem, x, 2 * STEP)
        ((attached - truth).square().sum()).backward()
        assert backward.solution.converged.all()
        assert backward.products <= most
    assert backward.products > 10


def test_a_loose_solve_is_near(setup):
    assert relative(setup.implicit(MINRES(1e-3)), setup.implicit(MINRES(1e-10, 500))) < 1e-2


def test_the_approximations_come_nearer_with_every_term(setup):
    exact = setup.implicit(MINRES(1e-10, 500))
    errors = [relative(setup.implicit(solver), exact) for solver in (JACOBIAN_FREE, Neumann(2), Neumann(8))]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[0] > 0.1


def test_taking_an_implicit_model_for_a_symmetric_one_is_caught():
    """A Jacobian that is used in the place of its transpose gives another gradient."""
    setup = setup_of("implicit", "dncnn", GRAY, "denoise")
    exact = setup.unrolled()
    for kind, same in ((Linearization, True), (Untransposed, False)):
        x, backward = ImplicitGradient(GMRES(1e-10, 80)).attach_to(kind.at(setup.problem(), setup.fixed_point), STEP)
        found = torch.autograd.grad(setup.loss(x), setup.theta, materialize_grads=True)
        assert backward.solution.converged.all()
        assert (relative(list(found), exact) < 1e-6) == same


def test_the_value_is_untouched(setup):
    attached, _ = ImplicitGradient().attach(setup.problem(), setup.fixed_point, STEP)
    assert torch.equal(attached.detach(), setup.fixed_point)


def test_an_image_whose_solve_failed_is_left_out_and_counted(setup):
    method = ImplicitGradient(MINRES(tol=1e-14, max_steps=1))
    attached, backward = method.attach(setup.problem(), setup.fixed_point, STEP)
    gradient = torch.autograd.grad(setup.loss(attached), setup.theta, materialize_grads=True)
    assert backward.skipped == 2
    assert all(float(g.abs().max()) == 0 for g in gradient)


def test_an_image_without_a_fixed_point_moves_its_next_step(setup):
    """Its gradient is that of L(T_θ(x)) at a constant x; the other image keeps the implicit one."""
    problem, x = setup.problem(), setup.fixed_point.clone()
    x[1] += 0.1 * torch.rand(x[1].shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    method = ImplicitGradient(MINRES(1e-10, 500), fallback=Neumann(0, measured=False))
    attached, backward = method.attach(problem, x, STEP, solved=torch.tensor([True, False]))
    found = torch.autograd.grad(setup.loss(attached), setup.theta, materialize_grads=True)
    assert backward.exact.tolist() == [True, False]
    assert backward.skipped == 0
    problem = setup.problem()
    stepped = problem.fidelity.prox(x - STEP * problem.reg_grad(x), STEP)
    torch.testing.assert_close(attached.detach()[1], stepped.detach()[1])
    step_gradient = torch.autograd.grad((stepped - setup.truth)[1].square().sum(), setup.theta, materialize_grads=True)
    exact, _ = ImplicitGradient(MINRES(1e-10, 500)).attach(setup.problem(), setup.fixed_point, STEP)
    implicit = torch.autograd.grad((exact - setup.truth)[0].square().sum(), setup.theta, materialize_grads=True)
    assert relative(list(found), [a + b for a, b in zip(step_gradient, implicit, strict=True)]) < 1e-8


def test_a_truncated_series_is_never_counted_as_exact(setup):
    for solver in (JACOBIAN_FREE, Neumann(8)):
        attached, backward = ImplicitGradient(solver).attach(setup.problem(), setup.fixed_point, STEP)
        torch.autograd.grad(setup.loss(attached), setup.theta, materialize_grads=True)
        assert (backward.exact.any().item(), backward.skipped) == (False, 0)


@pytest.mark.parametrize("method", [GMRES, MINRES, AndersonFixedPoint, FixedPoint])
def test_how_near_an_adjoint_solve_came_is_told_whatever_the_tolerance(method):
    matrices, b = systems([0.9]), torch.ones(1, 1, 3, 4, dtype=torch.float64)
    for tol in (0.3, 1e-2, 1e-6):
        found = method(tol, 4)(times(matrices), b, lambda r: r)
        left = float((b - times(matrices)(found.v)).norm() / b.norm())
        assert float(found.residual) == pytest.approx(left, rel=1e-6)
        if left > tol and method is not MINRES:
            assert not found.converged
        assert bool(found.usable) == (left <= max(tol, min(10 * tol, 1.0)))
        assert found.usable or not found.converged


def test_an_image_whose_adjoint_solve_fails_falls_back(setup):
    failing = MINRES(tol=1e-14, max_steps=1)
    attached, backward = ImplicitGradient(failing, fallback=JACOBIAN_FREE).attach(
        setup.problem(), setup.fixed_point, STEP
    )
    found = torch.autograd.grad(setup.loss(attached), setup.theta, materialize_grads=True)
    assert backward.skipped == 0
    assert not backward.exact.any()
    assert relative(list(found), setup.implicit_approximately(JACOBIAN_FREE)) < 1e-10


def test_a_diverged_adjoint_solve_does_not_spoil_the_other_images(setup):
    class Diverging:
        contraction: ClassVar[bool] = False

        def __call__(self, H, b, precondition):
            found = MINRES(1e-10, 500)(H, b, precondition)
            v = found.v.clone()
            v[1] = torch.nan
            return replace(found, v=v, converged=torch.tensor([True, False]), usable=torch.tensor([True, False]))

    attached, backward = ImplicitGradient(Diverging()).attach(setup.problem(), setup.fixed_point, STEP)
    gradient = torch.autograd.grad(setup.loss(attached), setup.theta, materialize_grads=True)
    assert backward.exact.tolist() == [True, False]
    assert all(bool(g.isfinite().all()) for g in gradient)
    assert any(float(g.abs().max()) > 0 for g in gradient)


@pytest.mark.parametrize("solver", [GMRES(1e-10, 80), MINRES(1e-10, 500)], ids=str)
def test_products_that_overflow_spoil_their_own_image_alone(solver):
    b = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def H(v: Tensor) -> Tensor:
        return torch.cat([2 * v[:1], v[1:] * torch.inf])

    found = solver(H, b, lambda r: r)
    assert found.converged.tolist() == [True, False]
    torch.testing.assert_close(found.v[0], b[0] / 2)


BATCHED = [GMRES(1e-2, 40), MINRES(1e-2, 40), AndersonFixedPoint(1e-2, 40), FixedPoint(1e-2, 400)]


def systems(spreads: list[float]) -> Tensor:
    """Symmetric matrices I + S, (b, 12, 12), one an image, with ‖S‖ from the list: the larger, the longer a solve."""
    s = torch.randn(len(spreads), 12, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    s = s + s.mT
    scale = torch.tensor(spreads, dtype=s.dtype) / torch.linalg.matrix_norm(s, ord=2)
    return torch.eye(12, dtype=s.dtype) + scale.view(-1, 1, 1) * s


def times(matrices: Tensor) -> Map:
    return lambda v: (matrices @ v.flatten(1).unsqueeze(2)).view_as(v)


@pytest.mark.parametrize("solver", BATCHED, ids=lambda solver: type(solver).__name__)
def test_a_batch_is_solved_as_its_images_one_by_one(solver):
    matrices = systems([0.0, 0.3, 0.9])
    b = torch.randn(3, 1, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = solver(times(matrices), b, lambda r: r)
    alone = [solver(times(matrices[i : i + 1]), b[i : i + 1], lambda r: r) for i in range(3)]
    assert torch.cat([found.converged for found in alone]).all()
    torch.testing.assert_close(together.v, torch.cat([found.v for found in alone]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(together.residual, torch.cat([found.residual for found in alone]), rtol=1e-8, atol=1e-12)
    counts = [found.products for found in alone]
    assert together.products == max(counts)
    assert counts[0] < counts[1] < counts[2]
    # No image is solved better than it was asked for because another one takes long.
    assert 1e-4 < float(together.residual[1]) <= 1e-2


@pytest.mark.parametrize("solver", [GMRES(1e-8, 60), MINRES(1e-8, 60)], ids=lambda solver: type(solver).__name__)
def test_an_image_that_converges_at_once_waits_for_the_others(solver):
    """Its next products would be rounding, which a method that goes on raises by a factor of 1e4 each."""
    matrices = torch.cat([1e4 * systems([0.0]), torch.linspace(0.1, 1.0, 12, dtype=torch.float64).diag()[None]]).float()
    b = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    found = solver(times(matrices), b, lambda r: r)
    assert found.products > 10
    assert found.converged.tolist() == [True, True]
    torch.testing.assert_close(found.v[0], b[0] / 1e4)


@pytest.mark.parametrize("solver", BATCHED[:2], ids=lambda solver: type(solver).__name__)
def test_a_right_hand_side_of_zero_costs_nothing(solver):
    def refused(v: Tensor) -> Tensor:
        raise AssertionError("a product")

    found = solver(refused, torch.zeros(2, 1, 3, 4), lambda r: r)
    assert (found.products, found.converged.tolist(), float(found.v.abs().max())) == (0, [True, True], 0.0)
