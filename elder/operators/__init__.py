"""Forward operators: what an imaging system does to a picture."""

from elder.operators.base import Operator
from elder.operators.fourier import MaskedFourier
from elder.operators.identity import Identity

__all__ = ["Identity", "MaskedFourier", "Operator"]
