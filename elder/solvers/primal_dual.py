"""Total-variation reconstruction: the classical explicit regularizer, as a baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from elder.fidelity import Fidelity
from elder.operators.differences import gradient, gradient_adjoint
from elder.tensors import norm


@torch.no_grad()
def reconstruct_tv(
    fidelity: Fidelity, x0: Tensor, lambda_reg: float, *, tol: float = 1e-4, max_steps: int = 500
) -> tuple[Tensor, Tensor]:
    """argmin_x ½‖A x − y‖² + λ Σ ‖(∇x)ᵢ‖₂ by the primal-dual method (Chambolle & Pock 2011, Algorithm 1, θ = 1).

    ∇ takes forward differences, zero at the far border, and the norm is taken over both directions, color by
    color. x0: (b, c, h, w); lambda_reg: λ > 0. The prox of the data term is exact, so every fidelity serves. Stops when
    no image moves by more than `tol` of its norm in a step. Returns x, and how many steps were taken, (b,).
    """
    if lambda_reg <= 0:
        raise ValueError(f"reconstruct_tv(lambda_reg=...) must be positive; got {lambda_reg}")
    # ‖∇‖² <= 8, so that any τ σ <= 1/8 converges; the prox absorbs the data term, hence the balance follows λ.
    tau = torch.tensor(min(1.0, 0.05 / lambda_reg), dtype=torch.float64, device=x0.device)
    sigma = float(1 / (8 * tau))
    x, x_bar = x0, x0
    p = x0.new_zeros(2, *x0.shape)
    steps = torch.full((len(x0),), max_steps, device=x0.device)
    for k in range(max_steps):
        p = p + sigma * gradient(x_bar)
        p = p / (p.square().sum(0).sqrt() / lambda_reg).clamp(min=1)
        x_new = fidelity.prox(x - float(tau) * gradient_adjoint(p), tau.expand(len(x0)))
        moved = norm(x_new - x) / norm(x).clamp(min=1e-12)
        x, x_bar = x_new, 2 * x_new - x
        if bool((moved <= tol).all()):
            steps.fill_(k + 1)
            break
    return x, steps


def total_variation(x: Tensor) -> Tensor:
    """Σ ‖(∇x)ᵢ‖₂ of each image, (b, c, h, w) -> (b,) in float64."""
    return gradient(x).square().sum(0).sqrt().flatten(1).sum(1, dtype=torch.float64)
