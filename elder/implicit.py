"""The gradient of a loss through a minimiser, by the implicit function theorem: its memory ignores the iterations."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from elder.linear import LinearSolution, minres
from elder.objective import Objective
from elder.tensors import dot, per_image


@dataclass(eq=False)
class Backward:
    """How the linear solve of a backward pass went; filled in when the gradient arrives."""

    solution: LinearSolution | None = field(default=None)

    @property
    def products(self) -> int:
        """Products with the Hessian."""
        return 0 if self.solution is None else self.solution.products

    @property
    def skipped(self) -> int:
        """Images whose solve failed; their gradient was left out."""
        return 0 if self.solution is None else int((~self.solution.converged).sum())


@dataclass(frozen=True)
class ImplicitGradient:
    """dL/dθ = −⟨v, ∂_θ(λ∇h_θ)(x)⟩ with H v = ∂L/∂x and H = ∇²g + λ∇²h, at a minimiser x of f = g + λh.

    From ∇g(x) + λ∇h_θ(x, σ) = 0 differentiated in θ (ELDER, Section 3.2; Bai et al. 2019). θ: the network, λ and σ.
    H is symmetric because h is an energy, so MINRES applies, preconditioned by (AᵀA + c I)⁻¹, c the curvature of λh
    along the gradient ∂L/∂x. One record of ∇h at x serves all products with H and the last product with v.

    tol: relative residual of the linear solve; max_steps: products with H at most.
    """

    tol: float = 1e-3
    max_steps: int = 100

    def __post_init__(self) -> None:
        if self.tol <= 0 or self.max_steps < 1:
            raise ValueError(
                f"ImplicitGradient needs tol > 0 and max_steps >= 1; got tol={self.tol}, max_steps={self.max_steps}"
            )

    def attach(self, objective: Objective, x: Tensor) -> tuple[Tensor, Backward]:
        """x again, (b, c, h, w), now a function of θ; and the report that its backward pass will fill in.

        x: a minimiser of `objective`. A failed linear solve leaves its image out of the gradient, and is counted.
        """
        report = Backward()
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            slope = objective.weight * objective.regularizer.grad(x, objective.sigma)

        def hessian(v: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(slope, x, v, retain_graph=True)
            return objective.fidelity.hessian(v) + objective.fidelity.free(product)

        def solve_adjoint(loss_gradient: Tensor) -> Tensor:
            u = objective.fidelity.free(loss_gradient.detach())
            data = objective.fidelity.hessian(u)
            scale = dot(u, u).clamp(min=torch.finfo(torch.float64).tiny)
            curvature = ((dot(u, hessian(u)) - dot(u, data)) / scale).clamp(min=1e-6)
            c = per_image(curvature, u)

            def precondition(r: Tensor) -> Tensor:
                return objective.fidelity.precondition(r, c)

            report.solution = minres(hessian, u, precondition, tol=self.tol, max_steps=self.max_steps)
            return torch.where(per_image(report.solution.converged, u) > 0, report.solution.v, 0.0)

        # The value is x; the derivative in θ is −∂_θ slope, applied to what the hook makes of ∂L/∂x.
        attached = x.detach() - (slope - slope.detach())
        attached.register_hook(solve_adjoint)
        return attached, report
