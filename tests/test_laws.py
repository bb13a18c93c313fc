"""Laws of operators, data terms and energies: each written once, and held against a wrong formula too."""

from __future__ import annotations

from dataclasses import dataclass

import cases
import pytest
import torch
from torch import Tensor

from elder.fidelity import LeastSquares
from elder.operators import MaskedFourier, Operator
from elder.problems import masks
from elder.regularizers.base import Energy
from elder.tensors import dot


def assert_adjoint(operator: Operator, x: Tensor, y: Tensor) -> None:
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩ in the real inner product."""
    ax = operator.A(x)
    gap = (dot(ax, y) - dot(x, operator.AT(y))).abs()
    assert (gap <= 1e-12 * dot(ax, ax).sqrt() * dot(y, y).sqrt() + 1e-14).all()


def assert_prox(fidelity: LeastSquares, v: Tensor, step: Tensor) -> None:
    """p = prox(v, τ) solves v − p = τ ∇g(p), with ∇g by automatic differentiation of the value."""
    p = fidelity.prox(v, step).detach().requires_grad_()
    (g,) = torch.autograd.grad(fidelity.value(p).sum(), p)
    torch.testing.assert_close(v - p.detach(), step.view(-1, 1, 1, 1) * g)


def measured(name: str, shape: tuple[int, ...], rng: torch.Generator) -> tuple[LeastSquares, Tensor]:
    operator = cases.OPERATORS[name](shape, rng)
    y = operator.A(cases.randn(shape, rng))
    noise = cases.randn(shape, rng) + (1j * cases.randn(shape, rng) if y.is_complex() else 0)
    return LeastSquares.of(operator, y + 0.1 * operator.A(torch.ones(shape, dtype=y.real.dtype)) * noise), y


@pytest.mark.parametrize("shape", cases.SIZES, ids=str)
@pytest.mark.parametrize("name", cases.OPERATORS)
class TestOperators:
    def test_adjoint(self, name, shape, rng):
        operator = cases.OPERATORS[name](shape, rng)
        x = cases.randn(shape, rng)
        y = cases.randn(shape, rng)
        if operator.A(x).is_complex():
            y = torch.complex(y, cases.randn(shape, rng))
        assert_adjoint(operator, x, y)

    def test_normal_is_the_composition(self, name, shape, rng):
        operator = cases.OPERATORS[name](shape, rng)
        x = cases.randn(shape, rng)
        torch.testing.assert_close(operator.normal(x), operator.AT(operator.A(x)))

    def test_shifted_solve_agrees_with_conjugate_gradients(self, name, shape, rng):
        operator = cases.OPERATORS[name](shape, rng)
        v, step = cases.randn(shape, rng), torch.tensor([0.25, 4.0, 1.7])[: shape[0]].double().view(-1, 1, 1, 1)
        generic = Operator.shifted_solve(operator, v, step, tol=1e-12)
        torch.testing.assert_close(operator.shifted_solve(v, step), generic)

    def test_prox_is_optimal(self, name, shape, rng):
        fidelity, _ = measured(name, shape, rng)
        for step in ([0.25, 4.0, 1.7], [3.0, 0.1, 50.0]):
            assert_prox(fidelity, cases.randn(shape, rng), torch.tensor(step[: shape[0]]).double())

    def test_grad_is_that_of_the_value(self, name, shape, rng):
        fidelity, _ = measured(name, shape, rng)
        x = cases.randn(shape, rng).requires_grad_()
        (g,) = torch.autograd.grad(fidelity.value(x).sum(), x)
        torch.testing.assert_close(fidelity.grad(x.detach()), g)

    def test_select_gives_the_images_alone(self, name, shape, rng):
        fidelity, _ = measured(name, shape, rng)
        x, last = cases.randn(shape, rng), torch.tensor([shape[0] - 1])
        torch.testing.assert_close(fidelity.select(last).value(x[last]), fidelity.value(x)[last])


@dataclass(frozen=True, eq=False)
class Wrong(MaskedFourier):
    """The adjoint forgets the mask, and the prox treats 1/τ as τ."""

    def AT(self, y: Tensor) -> Tensor:
        return torch.fft.ifft2(y, norm="ortho").real

    def shifted_solve(self, v: Tensor, step: Tensor, **options) -> Tensor:
        return super().shifted_solve(v, 1 / step)


def test_the_laws_catch_a_wrong_operator(rng):
    shape = (2, 1, 9, 12)
    operator = Wrong(masks.radial(shape[-2:], 0.4, rng).double())
    y = torch.complex(cases.randn(shape, rng), cases.randn(shape, rng))
    with pytest.raises(AssertionError):
        assert_adjoint(operator, cases.randn(shape, rng), y)
    right = MaskedFourier(operator.mask)
    fidelity = LeastSquares(operator, y, right.AT(y))
    with pytest.raises(AssertionError):
        assert_prox(fidelity, cases.randn(shape, rng), torch.tensor([0.25, 4.0]).double())


def assert_true_gradient(energy: Energy, x: Tensor, sigma: Tensor) -> None:
    """`value_and_grad` is the value, and automatic differentiation's gradient of it."""
    value, gradient = energy.value_and_grad(x, sigma)
    torch.testing.assert_close(value, energy.value(x, sigma))
    torch.testing.assert_close(gradient, Energy.value_and_grad(energy, x, sigma)[1])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", cases.NETWORKS)
@pytest.mark.parametrize("kind", cases.REGULARIZERS)
class TestEnergies:
    def test_gradient(self, kind, network, channels, rng):
        energy = cases.regularizer(kind, network, channels)
        x = cases.randn((2, channels, 7, 10), rng)
        for sigma in (torch.tensor(0.1), torch.tensor([0.05, 0.3])):
            with torch.no_grad():
                assert_true_gradient(energy, x, sigma)

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
        written = torch.autograd.grad((energy.grad(x, sigma) * target).sum(), parameters, allow_unused=True)
        reference = Energy.value_and_grad(energy, x.requires_grad_(), sigma)[1]
        expected = torch.autograd.grad((reference * target).sum(), parameters, allow_unused=True)
        for a, b, p in zip(written, expected, parameters, strict=True):
            zero = torch.zeros_like(p)
            torch.testing.assert_close(zero if a is None else a, zero if b is None else b)


def test_the_gradient_law_catches_a_missing_jacobian(rng):
    energy = cases.regularizer("least_squares", "dncnn")

    class Implicit(type(energy)):
        def value_and_grad(self, x, sigma):
            r = x - self.network(x, sigma)
            return dot(r, r) / 2, r

    energy.__class__ = Implicit
    with pytest.raises(AssertionError), torch.no_grad():
        assert_true_gradient(energy, cases.randn((1, 1, 6, 6), rng), torch.tensor(0.1))
