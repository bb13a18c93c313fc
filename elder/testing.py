"""The laws that every operator and energy must obey, for your own operators and energies too.

    from elder.testing import check_operator
    check_operator(MyOperator(...), torch.rand(2, 1, 9, 12, dtype=torch.float64))

Each check raises `AssertionError` naming the law that failed. In float64, with pictures of odd, non-square sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elder import spectral
from elder.fidelity import LeastSquares
from elder.operators.base import Operator
from elder.regularizers.base import Energy
from elder.tensors import dot


def check_operator(operator: Operator, x: Tensor, seed: int = 0) -> None:
    """Linearity, adjoint, normal map, solves, prox and per-image selection at pictures like x, (b, c, h, w)."""
    generator = torch.Generator().manual_seed(seed)
    y = like(operator.A(x), generator)
    assert_linear(operator, x, like(x, generator))
    assert_adjoint(operator, x, y)
    assert_close(operator.normal(x), operator.AT(operator.A(x)), "normal(x) = Aᵀ(A x)")
    fidelity = LeastSquares.of(operator, operator.A(x) + 0.1 * operator.A(like(x, generator)))
    for step in (0.25, 4.0):
        steps = torch.full((len(x),), step, dtype=x.dtype) * torch.linspace(1, 2, len(x), dtype=x.dtype)
        assert_prox_solve(operator, x, steps)
        assert_prox(fidelity, like(x, generator), steps)
        if operator.spectral:
            assert_weighted_solve(operator, like(x, generator), steps)
    last = torch.tensor([len(x) - 1])
    assert_close(fidelity.select(last).value(x[last]), fidelity.value(x)[last], "select gives the images alone")


def assert_linear(operator: Operator, x: Tensor, z: Tensor) -> None:
    """A(2x − 3z) = 2Ax − 3Az."""
    assert_close(operator.A(2 * x - 3 * z), 2 * operator.A(x) - 3 * operator.A(z), "A is linear")


def assert_adjoint(operator: Operator, x: Tensor, y: Tensor) -> None:
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩ in the real inner product."""
    ax = operator.A(x)
    gap = (dot(ax, y) - dot(x, operator.AT(y))).abs()
    bound = 1e-12 * dot(ax, ax).sqrt() * dot(y, y).sqrt() + 1e-14
    assert bool((gap <= bound).all()), f"⟨A x, y⟩ = ⟨x, Aᵀ y⟩ fails by {float(gap.max()):.1e}"


def assert_prox_solve(operator: Operator, v: Tensor, steps: Tensor) -> None:
    """(I + τAᵀA) prox_solve(v, τ) = v; steps τ: (b,)."""
    tau = steps.view(-1, 1, 1, 1)
    z = operator.prox_solve(v, tau)
    assert_close(z + tau * operator.normal(z), v, "(I + τ AᵀA) z = v", 1e-9)


def assert_weighted_solve(operator: Operator, v: Tensor, scales: Tensor) -> None:
    """(AᵀA + cW) weighted_solve(v, cW) = v in the metric W of natural pictures; scales c: (b,)."""
    weights = scales.view(-1, 1, 1, 1) * spectral.natural_image_weights((v.shape[-2], v.shape[-1]), v)
    z = operator.weighted_solve(v, weights)
    assert_close(operator.normal(z) + spectral.fourier_multiplier(z, weights), v, "(AᵀA + W) z = v", 1e-9)


def assert_prox(fidelity: LeastSquares, v: Tensor, steps: Tensor) -> None:
    """p = prox(v, τ) solves v − p = τ∇g(p), with ∇g by automatic differentiation of the value."""
    p = fidelity.prox(v, steps).detach().requires_grad_()
    (g,) = torch.autograd.grad(fidelity.value(p).sum(), p)
    assert_close(v - p.detach(), steps.view(-1, 1, 1, 1) * g, "v − prox(v, τ) = τ ∇g", 1e-5)


@torch.no_grad()
def check_energy(energy: Energy, x: Tensor, sigma: Tensor) -> None:
    """`value_and_grad` is the value and its true gradient at pictures x, one number an image."""
    value, gradient = energy.value_and_grad(x, sigma)
    assert value.shape == (len(x),), f"value must be one number an image, ({len(x)},); got {tuple(value.shape)}"
    assert_close(value, energy.value(x, sigma), "value_and_grad gives the value")
    assert_close(gradient, Energy.value_and_grad(energy, x, sigma)[1], "value_and_grad gives ∇h", 1e-9)


def assert_close(a: Tensor, b: Tensor, law: str, tolerance: float = 1e-10) -> None:
    """‖a − b‖ <= tolerance · ‖b‖."""
    gap = float((a - b).abs().square().sum().sqrt() / b.abs().square().sum().sqrt().clamp(min=1e-12))
    assert gap <= tolerance, f"{law} fails by {gap:.1e}, relative"


def like(a: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers in the shape and dtype of `a`."""
    return torch.randn(a.shape, generator=generator, dtype=a.dtype)
