"""Data terms: an operator bound to a measurement."""

from elder.fidelity.base import Fidelity
from elder.fidelity.hard_constraint import HardConstraint
from elder.fidelity.least_squares import LeastSquares

__all__ = ["Fidelity", "HardConstraint", "LeastSquares"]
