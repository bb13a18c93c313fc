"""Linear systems H v = b, one an image, solved in a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from elder.tensors import dot, norm, per_image

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LinearSolution:
    """What a linear solve returns; residual is the true ‖b − H v‖ / ‖b‖, from products with H that the solve made."""

    v: Tensor  # (b, c, h, w)
    residual: Tensor  # (b,) float64
    converged: Tensor  # (b,) bool: v may be used
    products: int  # products with H


class LinearSolver(Protocol):
    """v with H v = b, image by image.

    H: (b, c, h, w) -> (b, c, h, w), linear, on each image alone; precondition: likewise, symmetric positive definite
    and near H⁻¹. contraction: the method converges only where I − PH is a contraction, P the preconditioner.
    """

    contraction: ClassVar[bool]

    def __call__(self, H: Map, b: Tensor, precondition: Map) -> LinearSolution: ...


@dataclass(frozen=True)
class Krylov:
    """tol: relative residual to stop at; max_steps: products with H at most."""

    contraction: ClassVar[bool] = False

    tol: float = 1e-3
    max_steps: int = 100

    def __post_init__(self) -> None:
        if self.tol <= 0 or self.max_steps < 1:
            name = type(self).__name__
            raise ValueError(f"{name} needs tol > 0 and max_steps >= 1; got tol={self.tol}, max_steps={self.max_steps}")


@dataclass(frozen=True)
class MINRES(Krylov):
    """Minimum residual for symmetric H, definite or not (Paige & Saunders 1975), preconditioned.

    An image stops when its residual in the norm of the preconditioner is within `tol` of the start. `converged` asks
    the true residual to be within 10 tol: the two norms differ by the conditioning of the preconditioner.
    """

    @torch.no_grad()
    def __call__(self, H: Map, b: Tensor, precondition: Map) -> LinearSolution:
        eps = torch.finfo(torch.float64).eps
        v, w, w_old = torch.zeros_like(b), torch.zeros_like(b), torch.zeros_like(b)
        # H v, carried along by the recurrence of v, so that the true residual costs no product of its own.
        Hv, Hw, Hw_old = v, w, w_old
        r_old, r = b, b
        z = precondition(b)
        beta1 = dot(b, z).clamp(min=0).sqrt()
        beta, beta_old = beta1.clone(), torch.ones_like(beta1)
        dbar, epsilon = torch.zeros_like(beta1), torch.zeros_like(beta1)
        phi_bar, cs, sn = beta1.clone(), -torch.ones_like(beta1), torch.zeros_like(beta1)
        products = 0
        for k in range(self.max_steps):
            live = (phi_bar > self.tol * beta1) & (beta > 0)
            if not bool(live.any()):
                break
            q = z / per_image(beta.where(live, torch.ones_like(beta)), b)
            z = Hq = H(q)
            products += 1
            if k > 0:
                z = z - per_image((beta / beta_old).where(live, torch.zeros_like(beta)), b) * r_old
            alpha = dot(q, z)
            z = z - per_image((alpha / beta).where(live, torch.zeros_like(beta)), b) * r
            r_old, r = r, z
            z = precondition(r)
            beta_old, beta = beta, dot(r, z).clamp(min=0).sqrt()
            # The last Givens rotation, then the next one.
            epsilon_old, delta = epsilon, cs * dbar + sn * alpha
            g_bar, epsilon, dbar = sn * dbar - cs * alpha, sn * beta, -cs * beta
            gamma = torch.hypot(g_bar, beta).clamp(min=eps)
            cs, sn = g_bar / gamma, beta / gamma
            phi, phi_bar = cs * phi_bar, torch.where(live, sn * phi_bar, phi_bar)
            back, further, scale = (per_image(a, b) for a in (delta, epsilon_old, gamma))
            w_old, w = w, (q - further * w_old - back * w) / scale
            Hw_old, Hw = Hw, (Hq - further * Hw_old - back * Hw) / scale
            move = per_image(phi.where(live, torch.zeros_like(phi)), b)
            v, Hv = v + move * w, Hv + move * Hw
        return solution(v, norm(b - Hv), b, products, self.tol)


@dataclass(frozen=True)
class GMRES(Krylov):
    """Generalised minimum residual for any H (Saad & Schultz 1986), without restarts.

    Flexible (Saad 1993): the preconditioner may be inexact, as one by conjugate gradients is. Keeps two pictures a
    step: memory grows with `max_steps`.
    """

    @torch.no_grad()
    def __call__(self, H: Map, b: Tensor, precondition: Map) -> LinearSolution:
        scale = norm(b)
        safe = scale.clamp(min=torch.finfo(torch.float64).tiny)
        basis, directions, left = [b / per_image(safe, b)], [], scale
        hessenberg = b.new_zeros(len(b), self.max_steps + 1, self.max_steps, dtype=torch.float64)
        weights = hessenberg.new_zeros(len(b), self.max_steps, 1)
        broken = ~scale.isfinite()
        for k in range(self.max_steps):
            directions.append(precondition(basis[k]))
            w = H(directions[k])
            # Twice is enough for orthogonality in this precision (Giraud et al. 2005).
            for _ in range(2):
                for j, q in enumerate(basis):
                    share = dot(q, w)
                    hessenberg[:, j, k] += share
                    w = w - per_image(share, w) * q
            length = norm(w)
            # An image whose products overflow must not end the solves of the others.
            broken |= ~(length + hessenberg[:, : k + 1, k].sum(1)).isfinite()
            w, length = torch.where(per_image(broken, w) > 0, 0.0, w), length.masked_fill(broken, 0.0)
            hessenberg[broken] = 0.0
            hessenberg[:, k + 1, k] = length
            basis.append(w / per_image(length.clamp(min=torch.finfo(torch.float64).tiny), w))
            corner = hessenberg[:, : k + 2, : k + 1]
            target = hessenberg.new_zeros(len(b), k + 2, 1)
            target[:, 0, 0] = scale
            weights[:, : k + 1] = torch.linalg.pinv(corner) @ target
            left = (corner @ weights[:, : k + 1] - target).norm(dim=(1, 2))
            if bool(((left <= self.tol * scale) | broken).all()):
                break
        left = left.masked_fill(broken, torch.inf)
        v = torch.zeros_like(b)
        for j, z in enumerate(directions):
            v = v + per_image(weights[:, j, 0], b) * z
        # H maps the directions to the basis, which is orthonormal: what the small system leaves is what H v leaves.
        return solution(v, left, b, len(directions), self.tol)


def solution(v: Tensor, left: Tensor, b: Tensor, products: int, tol: float) -> LinearSolution:
    """What is known of v where ‖b − H v‖ = `left`, (b,)."""
    residual = left / norm(b).clamp(min=torch.finfo(torch.float64).tiny)
    return LinearSolution(v, residual, residual <= 10 * tol, products)
