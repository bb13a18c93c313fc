"""Symmetric linear systems, one an image, solved in a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elder.tensors import dot, norm, per_image

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LinearSolution:
    """What a linear solve returns; residual is the true ‖b − H v‖ / ‖b‖, not the recurrence's."""

    v: Tensor  # (b, c, h, w)
    residual: Tensor  # (b,) float64
    converged: Tensor  # (b,) bool
    products: int  # products with H


@torch.no_grad()
def minres(H: Map, b: Tensor, precondition: Map, *, tol: float = 1e-3, max_steps: int = 100) -> LinearSolution:
    """Solve H v = b for symmetric H, definite or not, image by image (Paige & Saunders 1975, preconditioned).

    H: (b, c, h, w) -> (b, c, h, w), acting on each image alone; precondition: likewise, symmetric positive definite,
    near H⁻¹. An image stops when its preconditioned residual is within `tol` of the start. `converged` asks the true
    residual to be within 10 tol: the two norms differ by the conditioning of the preconditioner.
    """
    eps = torch.finfo(torch.float64).eps
    v, w, w_old = torch.zeros_like(b), torch.zeros_like(b), torch.zeros_like(b)
    r_old, r = b, b
    z = precondition(b)
    beta1 = dot(b, z).clamp(min=0).sqrt()
    beta, beta_old = beta1.clone(), torch.ones_like(beta1)
    dbar, epsilon = torch.zeros_like(beta1), torch.zeros_like(beta1)
    phi_bar, cs, sn = beta1.clone(), -torch.ones_like(beta1), torch.zeros_like(beta1)
    products = 0
    for k in range(max_steps):
        live = (phi_bar > tol * beta1) & (beta > 0)
        if not bool(live.any()):
            break
        q = z / per_image(beta.where(live, torch.ones_like(beta)), b)
        z = H(q)
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
        w_older, w_old = w_old, w
        w = (q - per_image(epsilon_old, b) * w_older - per_image(delta, b) * w_old) / per_image(gamma, b)
        v = v + per_image(phi.where(live, torch.zeros_like(phi)), b) * w
    residual = norm(b - H(v)) / norm(b).clamp(min=torch.finfo(torch.float64).tiny)
    return LinearSolution(v, residual, residual <= 10 * tol, products + 1)
