"""Forward operators: what an imaging system does to a picture."""

from elder.operators.base import Operator
from elder.operators.blur import Blur
from elder.operators.fourier import MaskedFourier
from elder.operators.identity import Identity
from elder.operators.masking import Masking
from elder.operators.misfit import relative_misfit
from elder.operators.radon import Radon

__all__ = ["Blur", "Identity", "MaskedFourier", "Masking", "Operator", "Radon", "relative_misfit"]
