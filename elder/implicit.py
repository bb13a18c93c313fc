"""The gradient of a loss through a fixed point, by the implicit function theorem: its memory ignores the iterations."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from elder.linear import MINRES, LinearSolution, LinearSolver
from elder.objective import Equilibrium
from elder.tensors import per_image


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
    """dL/dθ = −⟨v, ∂_θ(λR_θ)(x)⟩ with Hᵀv = ∂L/∂x and H = ∇²g + λR', at an x with ∇g(x) + λR_θ(x, σ) = 0.

    That equation differentiated in θ: the network, λ and σ (ELDER, Section 3.2; Bai et al. 2019). For an energy
    R = ∇h, and H = ∇²g + λ∇²h is symmetric, so that MINRES applies; for an implicit regulariser take GMRES or a
    solver of `elder.adjoint`. Preconditioned by (AᵀA + W/τ)⁻¹, with the metric W and the step τ of the forward solve,
    which the line search fits to the curvature of λh; by (AᵀA + I/τ)⁻¹ for solvers that rest on a contraction, and
    where the data term has no closed form for W. One record of R at x serves all products with Hᵀ and the last one
    with v.
    """

    solver: LinearSolver = field(default_factory=MINRES)

    def attach(self, problem: Equilibrium, x: Tensor, step: Tensor) -> tuple[Tensor, Backward]:
        """x again, (b, c, h, w), now a function of θ; and the report that its backward pass will fill in.

        x: a fixed point of `problem`. step τ: (b,) or scalar. A failed linear solve leaves its image out of the
        gradient, and is counted.
        """
        report = Backward()
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            slope = problem.slope(x)

        def transposed(v: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(slope, x, v, retain_graph=True)
            return problem.fidelity.hessian(v) + problem.fidelity.free(product)

        def solve_adjoint(loss_gradient: Tensor) -> Tensor:
            u = problem.fidelity.free(loss_gradient.detach())
            c = per_image(1 / step.expand(len(u)), u)
            weights = None if self.solver.contraction else problem.fidelity.metric()

            def precondition(r: Tensor) -> Tensor:
                return problem.fidelity.precondition(r, c, weights)

            report.solution = self.solver(transposed, u, precondition)
            return torch.where(per_image(report.solution.converged, u) > 0, report.solution.v, 0.0)

        # The value is x; the derivative in θ is −∂_θ slope, applied to what the hook makes of ∂L/∂x.
        attached = x.detach() - (slope - slope.detach())
        attached.register_hook(solve_adjoint)
        return attached, report
