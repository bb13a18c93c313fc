"""The minimum residual method."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from elder.linear.base import IterativeSolver, LinearSolution, Map, solution
from elder.shapes import Images
from elder.tensors import dot, norm, only, per_image


@dataclass(frozen=True)
class MINRES(IterativeSolver):
    """Minimum residual for symmetric H, definite or not (Paige & Saunders 1975), preconditioned.

    An image stops when its residual in the norm of the preconditioner is within `tol` of the start. It has converged if
    its true residual is usable then: the two norms differ by the conditioning of the preconditioner.
    """

    @torch.no_grad()
    def __call__(self, H: Map, b: Images, precondition: Map) -> LinearSolution:
        """Solve H v = b for each image; see `LinearSolver`."""
        eps = torch.finfo(torch.float64).eps
        v, w, w_old = torch.zeros_like(b), torch.zeros_like(b), torch.zeros_like(b)
        # H v, carried along by the recurrence of v, so that the true residual costs no extra product.
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
            # An image that has converged keeps its v. Left alone, its q would be a power iteration, and overflow.
            q = only(live, z / per_image(beta, b))
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
            move = per_image(phi, b)
            v, Hv = v + only(live, move * w), Hv + only(live, move * Hw)
        found = solution(v, norm(b - Hv), b, products, self.tol)
        return replace(found, converged=found.usable & (phi_bar <= self.tol * beta1))
