"""Products with the Hessian to an implicit gradient of 1e-3, solver by solver: `python -m benchmarks.adjoint`.

At the fixed point of CS-MRI at 20 % and super-resolution by 3, with pre-trained networks: preconditioned MINRES
against the adjoint fixed-point iteration of deep equilibrium models, plain and with Anderson mixing. The error is that
of the gradient in the weights, against MINRES run to 1e-5. Counted, not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.common import TOLERANCES, Row, compared, main
from elder.implicit import ImplicitGradient
from elder.linear import GMRES, MINRES, AndersonFixedPoint, FixedPoint, LinearSolver
from elder.model.model import Model
from elder.problems.samples import Sample
from elder.solvers import fixed_point

ERROR, MOST = 1e-3, 300
SIZE = (72, 72)
PROBLEMS = {"csmri 20 %": ("csmri", {"ratio": 0.2}, SIZE), "superres x3": ("superres", {"scale": 3}, SIZE)}
SOLVERS: dict[str, Callable[[float], LinearSolver]] = {
    "fixed point": lambda tol: FixedPoint(tol, MOST),
    "fixed point, anderson": lambda tol: AndersonFixedPoint(tol, MOST),
    "gmres": lambda tol: GMRES(tol, 150),
    "minres": lambda tol: MINRES(tol, MOST),
}


def run(runs: int) -> Iterator[Row]:
    """Products of each solver on each picture; MINRES over the plain fixed-point iteration."""
    return compared("adjoint", PROBLEMS, products, "fixed point", runs, "products", 1 / 3, best="minres")


def products(chosen: Model, m: Sample) -> dict[str, int]:
    """The fewest products with which each solver brings the gradient's relative error to 1e-3, or MOST."""
    problem = chosen.objective(m.operator, m.y)
    start, step = chosen.problem.initial(m.operator, m.y), torch.tensor(chosen.hyperparameters.step)
    solution = fixed_point(problem, start, step, tol=1e-5, max_steps=400)
    weights = list(chosen.regularizer.requires_grad_().parameters())

    def gradient(solver: LinearSolver) -> tuple[Tensor, int]:
        x, backward = ImplicitGradient(solver).attach(problem, solution.x, solution.step)
        parts = torch.autograd.grad((x - m.truth).square().sum(), weights, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts]), backward.products

    exact, _ = gradient(MINRES(1e-5, 200))
    counts = {}
    for name, make in SOLVERS.items():
        for tol in TOLERANCES:
            found, count = gradient(make(tol))
            counts[name] = count
            if float((found - exact).norm()) <= ERROR * float(exact.norm()) or count >= MOST:
                break
    return counts


if __name__ == "__main__":
    main(run, __doc__, runs=4)
