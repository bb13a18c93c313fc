"""Laws of operators, data terms and energies: each written once, and held against a wrong formula too."""

from __future__ import annotations

from dataclasses import dataclass

import cases
import pytest
import torch
from torch import Tensor

from elder import spectral, testing
from elder.fidelity import HardConstraint, LeastSquares
from elder.networks import activations
from elder.operators import MaskedFourier
from elder.problems import masks
from elder.regularizers.base import Energy
from elder.regularizers.least_squares import LeastSquaresResidual
from elder.tensors import dot


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", cases.SIZES, ids=str)
@pytest.mark.parametrize("name", cases.OPERATORS)
def test_operators_obey_their_laws(name, shape, channels, rng):
    shape = (shape[0], channels, *shape[2:])
    testing.check_operator(cases.OPERATORS[name](shape, rng), cases.randn(shape, rng))


@pytest.mark.parametrize("size", [(3, 4), (5, 6)], ids=str)
@pytest.mark.parametrize("name", cases.DECIMATING)
def test_decimating_operators_obey_their_laws(name, size, rng):
    scale, make = cases.DECIMATING[name]
    shape = (2, 1, size[0] * scale, size[1] * scale)
    testing.check_operator(make(shape, rng), cases.randn(shape, rng))


@pytest.mark.parametrize("name", cases.OPERATORS)
def test_closed_forms_agree_with_conjugate_gradients(name, rng):
    shape = (2, 1, 9, 12)
    operator = cases.OPERATORS[name](shape, rng)
    v, step = cases.randn(shape, rng), torch.tensor([0.25, 4.0]).double().view(-1, 1, 1, 1)
    generic = operator.prox_solve_iteratively(v, step, tol=1e-12)
    torch.testing.assert_close(operator.prox_solve(v, step), generic)


def test_a_hard_constraint_projects(rng):
    shape = (2, 1, 9, 12)
    operator = cases.masking(shape, rng)
    constraint = HardConstraint.of(operator, operator.A(cases.randn(shape, rng)))
    v = cases.randn(shape, rng)
    p = constraint.prox(v, torch.tensor([0.25, 4.0]))
    assert torch.equal(operator.A(p), constraint.y)
    # What is moved is moved within the measured pixels: v − p is normal to the constraint.
    assert float((constraint.project_tangent(v - p)).abs().max()) == 0
    torch.testing.assert_close(constraint.prox(p, torch.tensor(1.0)), p)


def test_the_metric_weighs_each_frequency(rng):
    size = (9, 12)
    weights = spectral.natural_image_weights(size, cases.randn((1,), rng))
    assert float(weights.min()) == float(weights[0, 0]) == spectral.TOP * spectral.FLOOR
    assert float(weights.max()) < spectral.TOP
    row, column = torch.meshgrid(torch.arange(9.0).double(), torch.arange(12.0).double(), indexing="ij")
    wave = torch.cos(2 * torch.pi * (2 * row / 9 - 5 * column / 12) + 0.3).view(1, 1, *size)
    power = (2 / 9) ** 2 + (5 / 12) ** 2
    torch.testing.assert_close(
        spectral.fourier_multiplier(wave, weights), spectral.TOP * power / (power + spectral.CORNER**2) * wave
    )


def test_closed_forms_in_the_metric_are_for_operators_diagonal_in_the_fourier_basis(rng):
    shape = (2, 1, 8, 6)
    spectral = {name for name, make in cases.OPERATORS.items() if make(shape, rng).spectral}
    assert spectral == set(cases.OPERATORS) - {"masking", "radon"}
    with pytest.raises(NotImplementedError, match="Masking has no closed form"):
        cases.masking(shape, rng).weighted_solve(cases.randn(shape, rng), torch.ones(8, 6))


@dataclass(frozen=True, eq=False)
class Wrong(MaskedFourier):
    """The adjoint forgets the mask, the prox treats 1/τ as τ, and the solve in a metric likewise."""

    def AT(self, y: Tensor) -> Tensor:
        return torch.fft.ifft2(y, norm="ortho").real

    def prox_solve(self, v: Tensor, step: Tensor) -> Tensor:
        return super().prox_solve(v, 1 / step)

    def weighted_solve(self, v: Tensor, weights: Tensor) -> Tensor:
        return super().weighted_solve(v, 1 / weights)


def test_the_laws_catch_a_wrong_operator(rng):
    shape = (2, 1, 9, 12)
    operator = Wrong(masks.radial(shape[-2:], 0.4, rng).double())
    y = torch.complex(cases.randn(shape, rng), cases.randn(shape, rng))
    with pytest.raises(AssertionError):
        testing.assert_adjoint(operator, cases.randn(shape, rng), y)
    right = MaskedFourier(operator.mask)
    fidelity = LeastSquares(operator, y, right.AT(y))
    with pytest.raises(AssertionError):
        testing.assert_prox(fidelity, cases.randn(shape, rng), torch.tensor([0.25, 4.0]).double())
    with pytest.raises(AssertionError):
        testing.assert_weighted_solve(operator, cases.randn(shape, rng), torch.tensor([0.25, 4.0]).double())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kind", "network"), cases.ENERGIES)
class TestEnergies:
    def test_gradient(self, kind, network, channels, rng):
        energy = cases.regularizer(kind, network, channels)
        x = cases.randn((2, channels, 7, 10), rng)
        for sigma in (torch.tensor(0.1), torch.tensor([0.05, 0.3])):
            testing.check_energy(energy, x, sigma)

    def test_gradcheck(self, kind, network, channels, rng):
        energy = cases.regularizer(kind, network, channels)
        x = cases.randn((1, channels, 5, 4), rng).requires_grad_()
        sigma = torch.tensor(0.2, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda x: energy.value(x, sigma), x)
        assert torch.autograd.gradcheck(lambda x: energy.grad(x, sigma), x)

    def test_parameters_get_the_gradient_of_the_reference(self, kind, network, channels, rng):
        """Training through the written-out ∇h and through autograd's double backward agree."""
        energy = cases.regularizer(kind, network, channels)
        x, target = cases.randn((2, channels, 6, 7), rng), cases.randn((2, channels, 6, 7), rng)
        sigma, parameters = torch.tensor(0.1), list(energy.parameters())
        written = torch.autograd.grad((energy.grad(x, sigma) * target).sum(), parameters, materialize_grads=True)
        reference = Energy.value_and_grad(energy, x.requires_grad_(), sigma)[1]
        expected = torch.autograd.grad((reference * target).sum(), parameters, materialize_grads=True)
        torch.testing.assert_close(written, expected)


@pytest.mark.parametrize(("name", "jump"), [("elu", 1.0), ("softplus", 0.0)])
def test_activations_are_as_smooth_as_they_say(name, jump):
    """The second derivative from the right of zero less that from the left."""
    activation, h = activations.named(name), 1e-5
    u = torch.tensor([-h, 0.0, h], dtype=torch.float64)
    left, middle, right = activation.pullback(torch.ones_like(u), activation.apply(u.clone()))
    assert float((middle - left) / h - (right - middle) / h) == pytest.approx(jump, abs=1e-3)


def test_the_gradient_law_catches_a_missing_jacobian(rng):
    energy = cases.regularizer("least_squares", "dncnn")

    class Implicit(LeastSquaresResidual):
        def value_and_grad(self, x, sigma):
            r = x - self.network(x, sigma)
            return dot(r, r) / 2, r

    energy.__class__ = Implicit
    with pytest.raises(AssertionError, match="∇h"):
        testing.check_energy(energy, cases.randn((1, 1, 6, 6), rng), torch.tensor(0.1))


def hessian(energy: Energy, x: Tensor) -> Tensor:
    sigma = torch.tensor(0.1, dtype=torch.float64)
    return torch.autograd.functional.jacobian(lambda z: energy.grad(z, sigma), x).view(x.numel(), x.numel())


@pytest.mark.parametrize("scale", [0.01, 0.3, 3.0])
class TestRidge:
    def test_the_convex_one_is_convex(self, scale, rng):
        energy = cases.regularizer("convex_ridge")
        eigenvalues = torch.linalg.eigvalsh(hessian(energy, scale * cases.randn((1, 1, 6, 7), rng)))
        assert eigenvalues[0] >= -1e-10
        assert eigenvalues[-1] > 1e-6

    def test_the_weakly_convex_one_keeps_to_its_constant(self, scale, rng):
        energy = cases.regularizer("weakly_convex_ridge")
        with torch.no_grad():
            energy.log_bumps.fill_(2.0)
        eigenvalues = torch.linalg.eigvalsh(hessian(energy, scale * cases.randn((1, 1, 6, 7), rng)))
        assert eigenvalues[0] >= -energy.weak_convexity(0.1)


def test_the_weak_convexity_constant_is_not_idle(rng):
    """Where the bumps are steep the energy is not convex, and a twentieth of the constant would not bound it."""
    energy = cases.regularizer("weakly_convex_ridge")
    with torch.no_grad():
        energy.log_bumps.fill_(-9.0)
        energy.log_bumps[-1] = 4.0
        energy.log_amplitudes.fill_(-9.0)
    lowest = min(
        float(torch.linalg.eigvalsh(hessian(energy, s * cases.randn((1, 1, 8, 8), rng)))[0]) for s in (0.5, 1.0, 2.0)
    )
    assert -energy.weak_convexity(0.1) <= lowest < -0.05 * energy.weak_convexity(0.1)
