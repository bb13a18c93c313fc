"""The spectral radius of the fixed-point map is that of its Jacobian, and so is its gradient."""

from __future__ import annotations

from itertools import pairwise

import cases
import pytest
import torch
from torch import Tensor

from elder.fidelity import Fidelity, HardConstraint, LeastSquares
from elder.implicit import Linearization
from elder.objective import make_objective
from elder.operators import Masking
from elder.stability import adapted, penalty, spectral_radius
from elder.training.update import add_bounded

SHAPE = (2, 1, 8, 6)
STEP = torch.tensor([1.5, 3.0], dtype=torch.float64)
WEIGHT = torch.tensor(0.4, dtype=torch.float64)
SIGMA = torch.tensor(0.1, dtype=torch.float64)

KINDS = [("least_squares", "dncnn"), ("red", "drunet"), ("scalar", "dncnn"), ("weakly_convex_ridge", "")]
DATA = {
    "csmri": (cases.OPERATORS["fourier radial"], LeastSquares),
    "deblur": (cases.OPERATORS["blurs"], LeastSquares),
    "inpaint": (cases.OPERATORS["masking"], HardConstraint),
}


class Setup:
    """A regularizer at a random picture, with the dense Jacobian of T(x) = prox(x − τλR(x)) beside it."""

    def __init__(self, kind: str, network: str, name: str) -> None:
        rng = torch.Generator().manual_seed(3)
        make, data_term = DATA[name]
        operator = make(SHAPE, rng)
        self.x = torch.rand(SHAPE, generator=rng, dtype=torch.float64)
        self.start = cases.randn(SHAPE, rng)
        self.regularizer = cases.regularizer(kind, network)
        self.fidelity: Fidelity = data_term.of(operator, operator.A(self.x))

    def at(self) -> Linearization:
        return Linearization.at(make_objective(self.fidelity, self.regularizer, WEIGHT, SIGMA), self.x)

    def dense(self) -> Tensor:
        """|μ|_max of each image's Jacobian, (b,)."""
        return torch.linalg.eigvals(self.jacobian()).abs().amax(1)

    def leading(self) -> Tensor:
        """The eigenvector of |μ|_max of each image, (b, c, h, w). It is real for an energy."""
        values, vectors = torch.linalg.eig(self.jacobian())
        chosen = values.abs().argmax(1)
        return torch.stack([v[:, k].real for v, k in zip(vectors, chosen, strict=True)]).view_as(self.x)

    def jacobian(self) -> Tensor:
        """T'(x) of each image, (b, n, n)."""
        problem = make_objective(self.fidelity, self.regularizer, WEIGHT, SIGMA)

        def T(x: Tensor) -> Tensor:
            return problem.fidelity.prox(x - STEP.view(-1, 1, 1, 1) * problem.reg_grad(x), STEP)

        jacobian = torch.autograd.functional.jacobian(T, self.x)
        n = self.x[0].numel()
        return torch.stack([jacobian[i, ..., i, :, :, :].reshape(n, n) for i in range(len(self.x))])


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(("kind", "network"), KINDS, ids=str)
def test_it_is_the_largest_eigenvalue_of_the_jacobian(kind, network, name):
    setup = Setup(kind, network, name)
    found = spectral_radius(setup.at(), STEP, setup.leading() + 1e-3 * setup.start, iterations=20)
    torch.testing.assert_close(found.detach(), setup.dense(), rtol=1e-5, atol=0)


def test_power_iterations_find_it_from_any_direction():
    setup = Setup("least_squares", "dncnn", "csmri")
    found = spectral_radius(setup.at(), STEP, setup.start, iterations=1000)
    torch.testing.assert_close(found.detach(), setup.dense(), rtol=1e-6, atol=0)


def test_for_an_implicit_regularizer_it_is_the_growth_of_the_transposed_jacobian():
    setup = Setup("implicit", "dncnn", "csmri")
    grown = (setup.jacobian().transpose(1, 2) @ setup.start.flatten(1).unsqueeze(2)).flatten(1).norm(dim=1)
    found = spectral_radius(setup.at(), STEP, setup.start, iterations=0)
    torch.testing.assert_close(found.detach(), grown / setup.start.flatten(1).norm(dim=1))


def test_the_best_direction_of_the_products_tells_more_than_the_last_one():
    """A radius whose eigenvalues lie close together, where power iterations are slow."""
    setup = Setup("least_squares", "dncnn", "csmri")
    true, at = setup.dense(), setup.at()
    found = spectral_radius(at, STEP, setup.start, iterations=6).detach()
    c, u = 1 / STEP.view(-1, 1, 1, 1), setup.start
    for _ in range(6):
        u = at.preconditioner(STEP)(c * u - at.pullback(u))
    powers = spectral_radius(at, STEP, u, iterations=0).detach()
    assert bool((true - found < 0.5 * (true - powers)).all())


def test_products_beyond_the_space_of_the_pictures_add_nothing():
    """One pixel moves: after one product nothing is left to find, and what rounding leaves must not count."""
    mask = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    mask[..., 2, 2] = 0
    operator = Masking(mask)
    x = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = make_objective(
        HardConstraint.of(operator, operator.A(x)), cases.regularizer("least_squares", "dncnn"), WEIGHT, SIGMA
    )
    at, start = Linearization.at(problem, x), torch.ones_like(x)
    once, often = (spectral_radius(at, STEP[:1], start, k).detach() for k in (1, 7))
    torch.testing.assert_close(once, often)


def test_few_iterations_tell_it_from_below(rng):
    setup = Setup("least_squares", "dncnn", "csmri")
    estimates = [spectral_radius(setup.at(), STEP, setup.start, k).detach() for k in (0, 1, 3, 100)]
    for less, more in pairwise(estimates):
        assert bool((less <= more + 1e-12).all())


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(("kind", "network"), [*KINDS, ("implicit", "dncnn")], ids=str)
def test_the_gradient_of_the_penalty_is_that_of_finite_differences(kind, network, name):
    """Of the penalty on the true eigenvalue, with the eigenvector found again on either side.

    Without a symmetric Jacobian the norm ‖T'ᵀu‖ is differentiated at a constant u: there u is the start.
    """
    setup = Setup(kind, network, name)
    start, iterations = (setup.start, 0) if kind == "implicit" else (setup.leading(), 10)
    theta = list(setup.regularizer.parameters())
    target = 0.5 * float(spectral_radius(setup.at(), STEP, start, iterations).detach().min())

    def value() -> Tensor:
        return penalty(spectral_radius(setup.at(), STEP, start, iterations), target)

    gradient = torch.autograd.grad(value(), theta, materialize_grads=True)
    generator = torch.Generator().manual_seed(5)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in theta]
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    length, values = 1e-6, []
    for sign in (1, -2, 1):
        with torch.no_grad():
            for p, d in zip(theta, direction, strict=True):
                p.add_(length * sign * d)
        values.append(float(value().detach()))
    assert (values[0] - values[1]) / (2 * length) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("kind", ["least_squares", "implicit"])
def test_its_derivative_in_lambda_follows_the_step_that_lambda_sets(kind, name):
    """λτ is constant in training. So under a hard constraint, where λ scales all of the energy, there is none."""
    setup = Setup(kind, "dncnn", name)
    log_lambda = torch.tensor(-0.9, dtype=torch.float64, requires_grad=True)

    def radius() -> Tensor:
        problem = make_objective(setup.fidelity, setup.regularizer, log_lambda.exp(), SIGMA)
        step = (0.8 / log_lambda.exp()).expand(len(setup.x))
        # Without products of its own: the direction is constant, as it is for the derivative.
        return spectral_radius(Linearization.at(problem, setup.x), step, setup.start, iterations=0).sum()

    (slope,) = torch.autograd.grad(radius(), log_lambda)
    length, values = 1e-5, []
    for sign in (1, -2, 1):
        with torch.no_grad():
            log_lambda.add_(length * sign)
        values.append(float(radius().detach()))
    assert float(slope) == pytest.approx((values[0] - values[1]) / (2 * length), rel=1e-6, abs=1e-9)
    if name == "inpaint":
        assert float(slope) == pytest.approx(0, abs=1e-12)
    else:
        assert abs(float(slope)) > 1e-4


def test_below_the_target_nothing_is_charged():
    assert float(penalty(torch.tensor([0.2, 0.9]), 0.95)) == 0
    assert float(penalty(torch.tensor([0.95, 1.15]), 0.95)) == pytest.approx(0.02)


def test_the_weight_follows_the_radius_and_stays_within_bounds():
    high, low = torch.tensor([0.9, 1.2]), torch.tensor([0.8, 0.9])
    assert adapted(10.0, high, 0.95) > 10 > adapted(10.0, low, 0.95)
    assert adapted(1e4, high, 0.95) == 1e4
    assert adapted(1.0, low, 0.95) == 1.0


@pytest.mark.parametrize(("norm", "kept"), [(0.5, 1.0), (2.0, 1.0), (50.0, 0.04), (0.0, 1.0)])
def test_the_gradient_of_the_penalty_has_at_most_the_norm_of_that_of_the_loss(norm, kept):
    """As a whole, over all parameters; its direction stays. One parameter is reached by the penalty alone."""
    parameters = [torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    loss = [torch.tensor([2.0, 0.0, 0.0]).double(), torch.zeros(3).double()]
    for p, gradient in zip(parameters, loss, strict=False):
        p.grad = gradient.clone()
    direction = [torch.tensor(v).double() / 3 for v in ([0.0, 2.0, 0.0], [0.0, 0.0, 1.0], [2.0, 0.0, 0.0])]
    assert add_bounded(parameters, [norm * part for part in direction]) == pytest.approx(kept)
    for p, gradient, part in zip(parameters, [*loss, torch.zeros(3).double()], direction, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, gradient + kept * norm * part)


def test_a_penalty_whose_gradient_is_not_finite_leaves_no_finite_gradient():
    """So the step is left out and counted."""
    for bad in (torch.inf, torch.nan):
        p = torch.zeros(2, requires_grad=True)
        p.grad = torch.ones(2)
        add_bounded([p], [torch.tensor([bad, 0.0])])
        assert not bool(p.grad.isfinite().all())
