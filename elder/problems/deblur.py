"""Deblurring: y = K x + e with circular boundaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from elder.operators.base import Operator
from elder.problems.blur import BlurProblem
from elder.shapes import Images


@dataclass(frozen=True)
class Deblur(BlurProblem):
    """y = K x + e, circular boundaries; kernel as for `BlurProblem`. Raises what `BlurProblem` raises."""

    name: ClassVar[str] = "deblur"
    initial_name: ClassVar[str] = "blurred"
    noise: float = 0.01
    kernel: str = "motion"

    @property
    def factor(self) -> int:
        """1: the measurement has the size of the picture."""
        return 1

    def initial(self, operator: Operator, y: Images) -> Images:
        """y, the blurred picture."""
        return y
