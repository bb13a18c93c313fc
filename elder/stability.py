"""The spectral radius of the fixed-point map: how fast a reconstruction converges, as a number that can be trained."""

from __future__ import annotations

import torch

from elder.implicit import Linearization
from elder.shapes import Each, Images, OneOrEach, PerImage, Scalar
from elder.tensors import dot, norm, per_image


def spectral_radius(at: Linearization, step: OneOrEach, start: Images, iterations: int = 2) -> PerImage:
    """|μ| of the largest eigenvalue μ of T'(x), T(x) = prox_{τg}(x − τλR_θ(x)), (b,) float64; differentiable in θ.

    T'(x) = (AᵀA + I/τ)⁻¹(I/τ − λR'_θ(x)) in the feasible directions. Found by `iterations` power iterations from the
    direction `start`, (b, c, h, w), as an estimate from below that grows with their number.

    For an energy, T' is self-adjoint in ⟨u, (AᵀA + I/τ)w⟩, and with the direction u that is found

        μ = 1 − ⟨u, (AᵀA + λ∇²h) u⟩ / ⟨u, (AᵀA + I/τ) u⟩,

    the Rayleigh quotient, whose error is the square of that of u. So μ > 1 says that f = g + λh has negative curvature
    along u, and μ < −1 that the step τ is too long. Its derivative in θ, at a constant u, is that of the eigenvalue
    where u is an eigenvector. For an implicit regularizer ‖T'ᵀu‖ / ‖u‖ takes its place (Bai et al. 2021, who take
    random directions u).

    Reuses the record: each iteration is one product with the Jacobian. step τ: (b,) or scalar.
    """
    fidelity, precondition = at.problem.fidelity, at.preconditioner(step)
    c = per_image(1 / step.expand(len(at.x)), at.x)
    symmetric = at.problem.symmetric

    def apply(u: Images, *, record: bool = False) -> Images:
        # T' if R' is symmetric, as (λ∇²h)ᵀ = λ∇²h; its transpose else.
        if symmetric:
            return precondition(c * u - at.pullback(u, record=record))
        z = precondition(u)
        return c * z - at.pullback(z, record=record)

    u = _unit(fidelity.project_tangent(start.detach()))
    for _ in range(iterations):
        u = _unit(apply(u).detach())
    if not symmetric:
        return norm(apply(u, record=True)) / norm(u)
    with torch.no_grad():
        scale = dot(u, fidelity.hessian(u)) + dot(u, c * u)
    curvature = dot(u, fidelity.hessian(u)) + dot(u, at.pullback(u, record=True))
    return (1 - curvature / scale).abs()


def penalty(radius: Each, target: float) -> Scalar:
    """Mean over the images of max(ρ − target, 0)²; radius ρ: (b,)."""
    return (radius - target).clamp(min=0).square().mean()


def adapted(weight: float, radius: Each, target: float) -> float:
    """The penalty's weight after a step: up by a tenth where ρ exceeds the target on average, else down by a fiftieth.

    It rises fast and falls slowly, since lost fixed points cost more than a weight that is too large for a while. It
    stays within [1, 1e4].
    """
    factor = 1.1 if float(radius.detach().mean()) > target else 0.98
    return min(max(weight * factor, 1.0), 1e4)


def _unit(u: Images) -> Images:
    return u / per_image(norm(u).clamp(min=torch.finfo(u.dtype).tiny), u)
