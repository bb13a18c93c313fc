"""The gradient of a loss through a fixed point, by the implicit function theorem: its memory ignores the iterations."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.autograd import forward_ad

from elder.linear import MINRES, LinearSolution, LinearSolver, Map
from elder.objective import Equilibrium
from elder.shapes import Flags, Images, Multiplier, OneOrEach
from elder.tensors import only, per_image


@dataclass(frozen=True, eq=False)
class Linearization:
    """λR_θ and its Jacobian at a point: one recorded evaluation, which serves any number of products.

    Made by `Linearization.at`. The same record yields the fixed-point step, the products of the adjoint solve, the
    spectral radius of the fixed-point map and the gradient in θ.
    """

    problem: Equilibrium
    x: Images  # a leaf of the record
    reg_grad: Images  # λR_θ(x), recorded in x and θ

    @classmethod
    def at(cls, problem: Equilibrium, x: Images) -> Linearization:
        """The record of λR_θ at x, (b, c, h, w)."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            return cls(problem, x, problem.reg_grad(x))

    def pullback(self, v: Images, *, record: bool = False) -> Images:
        """(λR'_θ(x))ᵀ v in the feasible directions, (b, c, h, w). record: the result can be differentiated in θ."""
        (product,) = torch.autograd.grad(self.reg_grad, self.x, v, retain_graph=True, create_graph=record)
        return self.problem.fidelity.project_tangent(product)

    def derivative(self, u: Images) -> Images:
        """λR'_θ(x) u in the feasible directions, (b, c, h, w); can be differentiated in θ.

        Equal to `pullback` for an energy, whose Hessian is symmetric. By forward differentiation of a new evaluation. A
        product from the record can be differentiated too, but that differentiates convolutions twice: on a GPU, their
        weight gradients took a quarter of a step of training.
        """
        with torch.enable_grad(), forward_ad.dual_level():
            product = forward_ad.unpack_dual(self.problem.reg_grad(forward_ad.make_dual(self.x.detach(), u))).tangent
        # A regularizer that is linear in x has a constant gradient, without a tangent.
        return self.problem.fidelity.project_tangent(torch.zeros_like(u) if product is None else product)

    def transposed(self, v: Images) -> Images:
        """Hᵀv with H = ∇²g + λR'_θ(x), the Jacobian of the fixed-point equation; (b, c, h, w)."""
        return self.problem.fidelity.hessian(v) + self.pullback(v)

    def preconditioner(self, step: OneOrEach, weights: Multiplier | None = None) -> Map:
        """r -> (AᵀA + W/τ)⁻¹ r, with the weights W(ω) of a metric, or I if `None`. step τ: (b,) or scalar."""
        c = per_image(1 / step.expand(len(self.x)), self.x)
        return lambda r: self.problem.fidelity.precondition(r, c, weights)


@dataclass(eq=False)
class Backward:
    """How the backward pass went; filled in when the gradient arrives."""

    solution: LinearSolution | None = field(default=None)
    exact: Flags | None = field(default=None)  # images whose gradient is the implicit one, to the solver's tolerance
    skipped: int = 0  # images without any gradient
    products: int = 0  # products with the Hessian


@dataclass(frozen=True)
class ImplicitGradient:
    """dL/dθ = −⟨v, ∂_θ(λR_θ)(x)⟩ with Hᵀv = ∂L/∂x and H = ∇²g + λR', at an x with ∇g(x) + λR_θ(x, σ) = 0.

    The formula follows from differentiating that equation in θ: the network, λ and σ (ELDER, Section 3.2; Bai et al.
    2019). For an energy
    R = ∇h, and H = ∇²g + λ∇²h is symmetric, so MINRES applies. For an implicit regularizer take GMRES or a contraction
    of `elder.linear`. The preconditioner is (AᵀA + W/τ)⁻¹ with the metric W and the step τ of the forward solve, which
    the line search fits to the curvature of λh. It is (AᵀA + I/τ)⁻¹ for contractions, and if the data term has no
    closed form for W. One record of R at x serves all products with Hᵀ and the last one with v.

    fallback: the solver for images that are not at a fixed point, and for those whose adjoint solve is not usable;
    `linear.JACOBIAN_FREE` is the cheapest. If `None`, such images get no gradient, and are counted.
    """

    solver: LinearSolver = field(default_factory=MINRES)
    fallback: LinearSolver | None = None

    def attach(
        self, problem: Equilibrium, x: Images, step: OneOrEach, *, solved: Flags | None = None
    ) -> tuple[Images, Backward]:
        """x again, (b, c, h, w), now a function of θ; and the report that its backward pass will fill in.

        x: fixed points of `problem`. step τ: (b,) or scalar. solved: see `attach_to`.
        """
        return self.attach_to(Linearization.at(problem, x), step, solved=solved)

    def attach_to(self, at: Linearization, step: OneOrEach, *, solved: Flags | None = None) -> tuple[Images, Backward]:
        """As `attach`, on a record that is there already.

        solved: (b,) bool, the images at a fixed point; all of them if `None`. Where an image is not, the result is
        T(x) = prox_{τg}(x − τλR_θ(x)) in the place of x, and its gradient in θ that of `fallback`. With
        `linear.JACOBIAN_FREE` that is the gradient of L(T_θ(x)) at a constant x (Fung et al. 2022): it moves the
        image's next step toward a smaller loss.
        """
        x, report = at.x.detach(), Backward()
        everywhere = torch.ones(len(x), dtype=torch.bool, device=x.device)
        solved = everywhere if solved is None else solved

        def solve_adjoint(loss_gradient: Images) -> Images:
            u = at.problem.fidelity.project_tangent(loss_gradient.detach())
            v, exact, used = torch.zeros_like(u), torch.zeros_like(everywhere), torch.zeros_like(everywhere)
            if bool(solved.any()):
                weights = None if self.solver.contraction else at.problem.fidelity.metric()
                found = self.solver(_within(solved, at.transposed), only(solved, u), at.preconditioner(step, weights))
                report.solution, report.products = found, found.products
                exact = solved & found.converged
                used = solved & found.usable
                v = only(used, found.v)
            left = ~used
            if self.fallback is not None and bool(left.any()):
                rough = self.fallback(_within(left, at.transposed), only(left, u), at.preconditioner(step))
                report.products += rough.products
                left = left & ~rough.usable
                v = v + only(~used & ~left, rough.v)
            report.exact, report.skipped = exact, int(left.sum())
            return v

        # The value stays; the derivative in θ is −∂_θ reg_grad, applied to what the hook makes of ∂L/∂x.
        base = x if bool(solved.all()) else torch.where(per_image(solved, x) > 0, x, fixed_point_step(at, step))
        attached = base - (at.reg_grad - at.reg_grad.detach())
        attached.register_hook(solve_adjoint)
        return attached, report


@torch.no_grad()
def fixed_point_step(at: Linearization, step: OneOrEach) -> Images:
    """T(x) = prox_{τg}(x − τλR_θ(x)), (b, c, h, w); step τ: (b,) or scalar."""
    tau = step.expand(len(at.x))
    return at.problem.fidelity.prox(at.x - per_image(tau, at.x) * at.reg_grad, tau)


def _within(images: Flags, H: Map) -> Map:
    """H at some of the images, the identity at the others, whose products may overflow."""
    return lambda v: torch.where(per_image(images, v) > 0, H(v), v)
