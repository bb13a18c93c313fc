"""The shapes and types that annotations name: b images, c channels, h rows, w columns.

Letters that stand twice in one signature are of one size. The tests check every call. Elsewhere nothing is checked, and
annotations cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Complex, Float, Float64, Inexact, Int64, Shaped
from torch import Tensor

Anything = Shaped[Tensor, "..."]
# Pictures in [0, 1], and what has their shape: gradients, directions, residuals.
Images = Float[Tensor, "b c h w"]
# y = A x + e, in the shape and type that the operator gives it: real, or complex for csmri.
Measurement = Inexact[Tensor, "b *m"]
KSpace = Complex[Tensor, "b c h w"]
# Forward differences down and to the right.
Differences = Float[Tensor, "2 b c h w"]
# Layers of a network: f features.
Features = Float[Tensor, "b f h w"]

# One number for each image: energies, norms, step sizes of a solve.
PerImage = Float64[Tensor, "b"]
Counts = Int64[Tensor, "b"]
Flags = Bool[Tensor, "b"]
Scalar = Float[Tensor, ""]
Each = Float[Tensor, "b"]  # as `PerImage`, in any precision
# τ and σ: one number for all images, or one for each.
OneOrEach = Scalar | Each
# τ or c as `per_image` makes it, to multiply pictures.
Factor = Scalar | Float[Tensor, "#b 1 1 1"]
# Weights W(ω) on the grid of fft2, or half of it.
Multiplier = Factor | Float[Tensor, "h w"] | Float[Tensor, "#b #c h w"]

# Images of a batch: k of their numbers, or a flag for each.
Index = Int64[Tensor, "k"] | Bool[Tensor, "b"]

Size = tuple[int, int]  # (h, w)
# What a measurement file or a user gives to make an operator again: an array, numbers, or the name of a file.
Argument = np.ndarray | Tensor | Sequence[float] | float | str | Path
