"""Linear solvers: H v = b, one system for each image of a batch."""

from elder.linear.anderson import AndersonFixedPoint
from elder.linear.base import IterativeSolver, LinearSolution, LinearSolver, Map
from elder.linear.cg import conjugate_gradients
from elder.linear.fixed_point import FixedPoint
from elder.linear.gmres import GMRES
from elder.linear.minres import MINRES
from elder.linear.neumann import JACOBIAN_FREE, Neumann

__all__ = [
    "GMRES",
    "JACOBIAN_FREE",
    "MINRES",
    "AndersonFixedPoint",
    "FixedPoint",
    "IterativeSolver",
    "LinearSolution",
    "LinearSolver",
    "Map",
    "Neumann",
    "conjugate_gradients",
]
