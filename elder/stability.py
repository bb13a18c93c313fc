"""The spectral radius of the fixed-point map: how fast a reconstruction converges, as a number that can be trained."""

from __future__ import annotations

import torch

from elder.fidelity import Fidelity
from elder.implicit import Linearization
from elder.shapes import Each, Factor, Images, OneOrEach, PerImage, Scalar
from elder.tensors import dot, norm, per_image

# Products after which the Krylov space starts again, from its best direction: it holds four pictures for each.
KRYLOV = 8
# The length, in units of the vector that it was, at which what is left after an orthogonalization is rounding.
ROUNDING = 1e-5


def spectral_radius(at: Linearization, step: OneOrEach, start: Images, iterations: int = 2) -> PerImage:
    """|μ| of the largest eigenvalue μ of T'(x), T(x) = prox_{τg}(x − τλR_θ(x)), (b,) float64; differentiable in θ.

    T'(x) = (AᵀA + I/τ)⁻¹(I/τ − λR'_θ(x)) in the feasible directions. Found with `iterations` products with R'(x) from
    the direction `start`, (b, c, h, w), as an estimate from below that grows with their number.

    For an energy, T' is self-adjoint in ⟨u, (AᵀA + I/τ)w⟩. The products span a Krylov space, whose best direction u is
    found by the method of Rayleigh and Ritz. There

        μ = 1 − ⟨u, (AᵀA + λ∇²h) u⟩ / ⟨u, (AᵀA + I/τ) u⟩,

    whose error is the square of that of u. So μ > 1 says that f = g + λh has negative curvature along u, and μ < −1
    that the step τ is too long. Its derivative in θ, at a constant u, is that of the eigenvalue where u is an
    eigenvector. For an implicit regularizer the products are power iterations, and ‖T'ᵀu‖ / ‖u‖ takes the place of the
    quotient (Bai et al. 2021, who take random directions u).

    Reuses the record for all products except the last one of an energy. step τ: (b,) or scalar. Where τ is a function
    of θ, as λτ = 1 makes it one of λ, the derivative goes through it.
    """
    fidelity = at.problem.fidelity
    c = per_image(1 / step.expand(len(at.x)), at.x)
    u = _unit(fidelity.project_tangent(start.detach()))
    if not at.problem.symmetric:
        return _growth(at, step.detach(), c, u, iterations)
    u = _leading(at, step.detach(), c.detach(), u, iterations)
    scale = dot(u, fidelity.hessian(u)) + dot(u, c * u)
    curvature = dot(u, fidelity.hessian(u)) + dot(u, at.derivative(u))
    return (1 - curvature / scale).abs()


def _growth(at: Linearization, step: OneOrEach, c: Factor, u: Images, iterations: int) -> PerImage:
    """‖T'ᵀu‖ / ‖u‖ after power iterations with T'ᵀ from u. step: τ as a number; c: 1/τ, which may be recorded."""
    precondition = at.preconditioner(step)
    for _ in range(iterations):
        z = precondition(u)
        u = _unit((c * z - at.pullback(z)).detach())
    z = precondition(u)
    # The derivative of (AᵀA + c)⁻¹u in c, without recording the solver.
    z = z - (c - c.detach()) * precondition(z)
    return norm(c * z - at.pullback(z, record=True)) / norm(u)


@torch.no_grad()
def _leading(at: Linearization, step: OneOrEach, c: Factor, u: Images, iterations: int) -> Images:
    """The eigenvector of T' of largest |μ|, (b, c, h, w), as far as `iterations` products from u tell.

    By Lanczos's method with restarts (Golub & Van Loan, Matrix Computations, Chapter 10), with full orthogonalization.
    """
    fidelity, precondition = at.problem.fidelity, at.preconditioner(step)
    done = 0
    while done < iterations:
        basis: list[Images] = []  # orthonormal in M = AᵀA + I/τ
        weighted: list[Images] = []  # M times these
        mapped: list[Images] = []  # T' times these
        coupling: list[Images] = []  # M T' times these
        for _ in range(min(KRYLOV, iterations - done)):
            for _ in range(2):  # once leaves the rounding of what was taken away
                for v, mv in zip(basis, weighted, strict=True):
                    u = u - per_image(dot(mv, u), u) * v
            mu = fidelity.hessian(u) + c * u
            length = dot(u, mu).clamp(min=0).sqrt()
            # What is left of a direction that the others span is rounding. It is set to zero: one more eigenvalue 0.
            share = torch.where(
                length > (ROUNDING if basis else 0.0), 1 / length.clamp(min=torch.finfo(u.dtype).tiny), 0.0
            )
            basis.append(per_image(share, u) * u)
            weighted.append(per_image(share, u) * mu)
            coupling.append(c * basis[-1] - at.pullback(basis[-1]))
            mapped.append(precondition(coupling[-1]))
            u = mapped[-1] / per_image(_length(mapped[-1], fidelity, c), u)
            done += 1
        ritz = torch.stack([torch.stack([dot(v, w) for w in coupling], 1) for v in basis], 1)
        values, vectors = torch.linalg.eigh((ritz + ritz.transpose(1, 2)) / 2)
        largest = values.abs().argmax(1)
        weights = vectors.gather(2, largest.view(-1, 1, 1).expand(-1, vectors.shape[1], 1)).squeeze(2)
        # One more step of the power iteration costs no product.
        u = sum((per_image(weights[:, k], v) * v for k, v in enumerate(mapped)), torch.zeros_like(u))
        u = u / per_image(_length(u, fidelity, c), u)
    return u


def _length(u: Images, fidelity: Fidelity, c: Factor) -> PerImage:
    """‖u‖ in the inner product of M = AᵀA + cI, (b,)."""
    return (dot(u, fidelity.hessian(u)) + dot(u, c * u)).clamp(min=torch.finfo(u.dtype).tiny).sqrt()


def penalty(radius: Each, target: float) -> Scalar:
    """Mean over the images of max(ρ − target, 0)²; radius ρ: (b,)."""
    return (radius - target).clamp(min=0).square().mean()


def adapted(weight: float, radius: Each, target: float) -> float:
    """The penalty's weight after a step: up by a tenth where ρ exceeds the target on average, else down by a fiftieth.

    It rises fast and falls slowly, since lost fixed points cost more than a weight that is too large for a while. It
    stays within [1, 1e4]. A radius that is not finite counts as one that exceeds the target.
    """
    factor = 0.98 if float(radius.detach().mean()) <= target else 1.1
    return min(max(weight * factor, 1.0), 1e4)


def _unit(u: Images) -> Images:
    return u / per_image(norm(u).clamp(min=torch.finfo(u.dtype).tiny), u)
