"""How far a picture is from the measurement."""

from __future__ import annotations

import torch

from elder.operators.base import Operator
from elder.shapes import Images, Measurement, PerImage
from elder.tensors import norm


def relative_misfit(operator: Operator, x: Images, y: Measurement) -> PerImage:
    """The data misfit ‖A x − y‖ / ‖y‖ of each image, (b,) in float64; dimensionless.

    A picture explains its measurement if the misfit is near the noise level of y, divided by ‖y‖. A misfit much above
    that means that the picture is wrong, or that A is not the operator that made y. If y is zero, the result is ‖A x‖.

    x: pictures, (b, c, h, w); y: their measurements, in the shape of A x, real or complex.
    """
    size = norm(y)
    return norm(operator.A(x) - y) / torch.where(size > 0, size, torch.ones_like(size))
