"""Fixed-point solvers: one loop, and steps as values."""

from elder.solvers.anderson import Anderson
from elder.solvers.inertial import Inertial
from elder.solvers.loop import Solution, Status, iterates, solve
from elder.solvers.proximal_gradient import Iterate, ProximalGradient

__all__ = ["Anderson", "Inertial", "Iterate", "ProximalGradient", "Solution", "Status", "iterates", "solve"]
