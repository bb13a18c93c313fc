"""Total-variation reconstruction, certified by a primal-dual gap: the classical explicit regularizer, as a baseline."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from elder.fidelity import Fidelity
from elder.operators.differences import gradient, gradient_adjoint
from elder.shapes import Counts, Flags, Images, Index, PerImage
from elder.solvers.status import Status
from elder.tensors import norm, per_image

# ‖∇‖² <= 8, so τ σ = 1/8 converges.
NORM_SQUARED = 8.0
# Over-relaxation ρ in (0, 2). Of 1, 1.5, 1.7, 1.8 and 1.9, those about 1.7 took the fewest steps on photographs.
RELAXATION = 1.7
# The gap is computed every so many steps.
CHECK_EVERY = 10
# A gap within its rounding errors that has not fallen below this share of the last one does not fall further.
STILL = 0.9
# The steps after which τ is chosen again, from how far both iterates have moved.
BALANCE_AT = (10, 20, 40, 80)
# The first τ, in units of the picture's root mean square over λ.
FIRST_STEP = 0.04


Dual = Float[Tensor, "b 2 c h w"]


@dataclass(frozen=True, eq=False)
class TVSolution:
    """A total-variation reconstruction; `status` says whether the gap certifies it."""

    x: Images
    status: tuple[Status, ...]  # one an image
    steps: Counts  # each takes one proximal map of the data term
    energy: PerImage  # f(x)
    gap: PerImage  # upper bound on f(x) − min f; see `certificate`


@dataclass(frozen=True, eq=False)
class _State:
    """Every field has the batch as its first axis."""

    x: Images
    p: Dual  # the dual variable
    anchor_x: Images  # x and p when τ was chosen last
    anchor_p: Dual
    tau: PerImage
    index: Counts  # where the image stands in the whole batch

    def select(self, keep: Index) -> _State:
        return _State(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})


@torch.no_grad()
def reconstruct_tv(
    fidelity: Fidelity, x0: Images, lambda_reg: float, *, tol: float = 1e-3, max_steps: int = 1000
) -> TVSolution:
    """Minimize f(x) = g(x; y) + λ Σ ‖(∇x)ᵢ‖₂ by an over-relaxed primal-dual method, until the gap certifies the result.

    ∇ takes forward differences, zero at the far border. The norm is taken over both directions, color by color. The
    prox of the data term g is exact, so every fidelity serves. Each image has its own step and stops on its own: a
    batch gives the results of its images one by one. The step τ follows the ratio of how far x and the dual variable p
    move, so it needs no tuning. Scaling y, x0 and λ by the same factor scales x by it.

    Args:
        fidelity: the data term of a batch of measurements.
        x0: where to start, (b, c, h, w). The result does not depend on it where f has one minimum.
        lambda_reg: λ > 0. Under a hard constraint it does not affect x.
        tol: an image is `CONVERGED` when its gap is at most `tol` times its energy f(x).
        max_steps: at which an image stops as `MAX_STEPS`.

    Returns:
        The pictures, with a status, the steps, the energy and the gap of each. The status is `PRECISION` where the gap
        is within the rounding errors of the arithmetic, and no longer falls, before it meets `tol`.

    Raises:
        ValueError: if `lambda_reg`, `tol` or `max_steps` is not positive.

    References: Chambolle & Pock, "A first-order primal-dual algorithm for convex problems with applications to
    imaging", J. Math. Imaging Vis. 40 (2011), Algorithm 1. Over-relaxation: Condat, J. Optim. Theory Appl. 158 (2013).
    Choice of τ: Applegate et al., "Practical large-scale linear programming using primal-dual hybrid gradient" (2021).
    """
    for name, value in (("lambda_reg", lambda_reg), ("tol", tol), ("max_steps", max_steps)):
        if not value > 0:
            raise ValueError(f"reconstruct_tv({name}=...) must be positive; got {value}")
    s = _start(fidelity, x0, lambda_reg)
    x, status = s.x.clone(), [Status.MAX_STEPS] * len(x0)
    steps = torch.full((len(x0),), max_steps, device=x0.device)
    energy, gap = torch.full_like(s.tau, torch.nan), torch.full_like(s.tau, torch.inf)
    for count in range(1, max_steps + 1):
        x_new, p_new = _step(fidelity, s, lambda_reg)
        if count % CHECK_EVERY == 0 or count == max_steps:
            last = gap[s.index]
            x[s.index] = x_new
            energy[s.index], gap[s.index], rounding = certificate(fidelity, s.x, s.p, s.tau, x_new, p_new, lambda_reg)
            why = _stops(energy[s.index], gap[s.index], tol, (gap[s.index] <= rounding) & (gap[s.index] > STILL * last))
            for i, reason in zip(s.index.tolist(), why, strict=True):
                status[i] = reason or status[i]
            done = torch.tensor([reason is not None for reason in why], device=x0.device)
            steps[s.index[done]] = count
            if bool(done.all()):
                break
            keep = (~done).nonzero().flatten()
            s, x_new, p_new = s.select(keep), x_new[keep], p_new[keep]
            fidelity = fidelity.select(keep)
        s = _relaxed(s, x_new, p_new, balance=count in BALANCE_AT)
    return TVSolution(x, tuple(status), steps, energy, gap)


def certificate(
    fidelity: Fidelity, x: Images, p: Dual, tau: PerImage, x_new: Images, p_new: Dual, lambda_reg: float
) -> tuple[PerImage, PerImage, PerImage]:
    """The energy f(x⁺), an upper bound on f(x⁺) − min f, and a bound on its rounding error; (b,) float64 each.

    The dual energy −g*(−∇ᵀp) is minus infinity unless ∇ᵀp lies in the range of Aᵀ, which holds only in the limit where
    A has a null space, and likewise under a hard constraint. So the full primal-dual gap is infinite at every step. The
    partial gap over a box B of pictures is finite (Chambolle & Pock 2011, section 3.1). With x⁺ = prox_{τg}(x − τ∇ᵀp),
    s = (x − x⁺)/τ − ∇ᵀp is a subgradient of g at x⁺. For every picture z and every p⁺ with ‖p⁺ᵢ‖₂ <= λ,

        g(z) >= g(x⁺) + ⟨s, z − x⁺⟩    and    λ TV(z) >= ⟨p⁺, ∇z⟩,

    so that, with the residual r = s + ∇ᵀp⁺ of the optimality condition,

        f(x⁺) − f(z) <= λ TV(x⁺) − ⟨p⁺, ∇x⁺⟩ + ⟨r, x⁺ − z⟩.

    The bound returned is the maximum of the right side over z in B. Under a hard constraint x⁺ − z is a feasible
    direction, hence r is projected onto these. B holds the pictures that differ from x⁺ by at most maxᵢ |x⁺ᵢ| in every
    pixel, all those with values from 0 to that maximum among them. Then the maximum of ⟨r, x⁺ − z⟩ is maxᵢ |x⁺ᵢ| ‖r‖₁.
    A picture z beyond B has f(x⁺) − f(z) of at most gap / t, where t is the share of the segment from x⁺ to z that lies
    in B, because f is convex.
    """
    d = _differences(x_new)
    residual = per_image(1 / tau, x) * (x - x_new) - _adjoint(p - p_new)
    r = fidelity.project_tangent(residual).flatten(1).double()
    magnitude = x_new.flatten(1).abs().double()
    largest = magnitude.amax(1)
    variation = lambda_reg * d.square().sum(1).sqrt().flatten(1).sum(1, dtype=torch.float64)
    slack = variation - (p_new * d).flatten(1).sum(1, dtype=torch.float64)
    gap = slack + largest * r.abs().sum(1)
    # r is a difference of terms as large as x/τ and ∇g(0), and TV a sum of differences of terms as large as x.
    eps = torch.finfo(x.dtype).eps
    terms = fidelity.grad(torch.zeros_like(x_new)).flatten(1).abs().sum(1, dtype=torch.float64)
    rounding = eps * (largest * (terms + magnitude.sum(1) / tau) + 2 * lambda_reg * magnitude.sum(1))
    return fidelity.value(x_new) + variation, gap, rounding


def _start(fidelity: Fidelity, x0: Images, lambda_reg: float) -> _State:
    """From the picture near x0 that agrees with the measurement, whose scale gives the first τ."""
    ones = torch.ones(len(x0), dtype=torch.float64, device=x0.device)
    x = fidelity.prox(x0, ones)
    scale = norm(x) / x[0].numel() ** 0.5
    p = x.new_zeros(len(x), 2, *x.shape[1:])
    tau = torch.where(scale > 0, FIRST_STEP * scale, ones) / lambda_reg
    return _State(x, p, x, p, tau, torch.arange(len(x), device=x.device))


def _step(fidelity: Fidelity, s: _State, lambda_reg: float) -> tuple[Images, Dual]:
    """x⁺ = prox_{τg}(x − τ∇ᵀp) and p⁺, the projection of p + σ∇(2x⁺ − x) onto ‖pᵢ‖₂ <= λ, with σ = 1/(8τ)."""
    tau = per_image(s.tau, s.x)
    x = fidelity.prox(s.x - tau * _adjoint(s.p), s.tau)
    p = s.p + _differences((2 * x - s.x) / (NORM_SQUARED * tau))
    return x, p / (p.square().sum(1, keepdim=True).sqrt() / lambda_reg).clamp(min=1)


def _relaxed(s: _State, x: Images, p: Dual, *, balance: bool) -> _State:
    """The next state. If `balance`, τ becomes ‖Δx‖ / (√8 ‖Δp‖), with the moves since it was chosen last."""
    x, p = s.x + RELAXATION * (x - s.x), s.p + RELAXATION * (p - s.p)
    if not balance:
        return _State(x, p, s.anchor_x, s.anchor_p, s.tau, s.index)
    tau = norm(x - s.anchor_x) / (NORM_SQUARED**0.5 * norm(p - s.anchor_p))
    return _State(x, p, x, p, torch.where(tau.isfinite() & (tau > 0), tau, s.tau), s.index)


def _stops(energy: PerImage, gap: PerImage, tol: float, exhausted: Flags) -> list[Status | None]:
    """Why each image stops here, or `None` for an image that continues. exhausted: its gap can't fall further."""

    def why(energy: float, gap: float, exhausted: bool) -> Status | None:
        if not gap < float("inf"):
            return Status.NOT_FINITE
        if gap <= tol * energy:
            return Status.CONVERGED
        return Status.PRECISION if exhausted else None

    return [why(*row) for row in zip(energy.tolist(), gap.tolist(), exhausted.tolist(), strict=True)]


def _differences(x: Images) -> Dual:
    """∇x with the batch as the first axis, (b, c, h, w) -> (b, 2, c, h, w)."""
    return gradient(x).transpose(0, 1)


def _adjoint(p: Dual) -> Images:
    """∇ᵀp, (b, 2, c, h, w) -> (b, c, h, w)."""
    return gradient_adjoint(p.transpose(0, 1))
