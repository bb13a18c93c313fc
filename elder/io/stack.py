"""What the pictures of a file mean: their axes, the value of white, and how they are brought to [0, 1]."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elder.errors import DataWarning, UserError

# What brings values to [0, 1]: one of these names, or a window (low, high).
SCALINGS = ("range", "max", "percentile")
Scaling = str | Sequence[float]
# The percentiles of a file's values that `percentile` turns into 0 and 1.
PERCENTILES = (0.1, 99.9)
# A picture whose values span less than this share of [0, 1] is probably not in the units that its file claims.
DIM = 0.1
# Orders of the axes of an array without metadata: n pictures, h rows, w columns, c colors.
AXES = ("hw", "hwc", "chw", "nhw", "hwn", "nhwc", "nchw")
# Rows and columns of a picture differ by less than this factor. An array cut along a wrong axis gives strips.
STRIP = 8
# From this factor on they are strips where the first two axes are nearer to a square.
NARROW = 2
# Arithmetic in float32, as scaling by 1/255, passes white by rounding.
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Stack:
    """The pictures of one file, before scaling."""

    values: np.ndarray  # (n, h, w) or (n, h, w, 3), real
    white: float | None  # the value of white, by the file's own word; black is 0. None: the file does not say


def white_of(dtype: np.dtype) -> float | None:
    """The value of white where only the type of the numbers is known.

    1 for booleans and floating point, the largest value of the type for unsigned integers of 8 and 16 bits. None for
    signed and wider integers: they hold Hounsfield units, counts, labels, or values of a smaller type.
    """
    if dtype.kind in "bf":
        return 1.0
    return float(np.iinfo(dtype).max) if dtype.kind == "u" and dtype.itemsize <= 2 else None


def stacked(path: Path, array: np.ndarray, axes: str = "") -> Stack:
    """The pictures of an array without metadata. Complex values give their magnitude.

    axes: one of `AXES`; empty: by the rule of `guess_axes`. Raises `UserError` if they are ambiguous, or do not fit.
    """
    if np.iscomplexobj(array):
        array = np.abs(array)
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise UserError(f"{path}: must hold numbers; it holds {array.dtype}")
    chosen = axes or guess_axes(path, array)
    if chosen not in AXES:
        raise UserError(f"axes={axes!r} must be one of {', '.join(AXES)}")
    if array.ndim != len(chosen):
        raise UserError(f"{path}: axes={chosen} needs {len(chosen)} axes; the array is {_size(array)}")
    values = np.moveaxis(array, [chosen.index(a) for a in "nhwc" if a in chosen], range(array.ndim))
    values = values if "n" in chosen else values[None]
    return checked(path, Stack(without_alpha(path, values) if "c" in chosen else values, white_of(array.dtype)))


def guess_axes(path: Path, array: np.ndarray) -> str:
    """The order of the axes, by the one rule for arrays without metadata.

    Two axes are rows and columns. A last axis of 1, 3 or (in 8 bits) 4 holds colors. Other arrays of three axes are
    pictures one after the other. Raises `UserError` where colors may come first, where slices may come last, and for
    more axes.
    """
    shape = array.shape
    if array.ndim == 2:
        return "hw"
    if array.ndim in (3, 4) and (shape[-1] in (1, 3) or (shape[-1] == 4 and array.dtype == np.uint8)):
        if array.ndim == 4 and shape[1] in (1, 3):
            raise _ambiguous(path, array, "nhwc", "nchw")
        return "hwc" if array.ndim == 3 else "nhwc"
    if array.ndim == 3:
        if shape[0] == 3:
            raise _ambiguous(path, array, "chw", "nhw")
        strip, other = (max(sides) / max(1, min(sides)) for sides in (shape[1:], shape[:2]))
        if strip >= STRIP or (strip >= NARROW and other < strip) or shape[0] == shape[1] != shape[2]:
            raise _ambiguous(path, array, "nhw", "hwn")
        return "nhw"
    if array.ndim == 4 and shape[1] in (1, 3):
        return "nchw"
    raise UserError(f"{path}: must hold pictures (h, w) or (h, w, 3), or a stack of them; got {_size(array)}")


def without_alpha(path: Path, values: np.ndarray) -> np.ndarray:
    """(n, h, w) or (n, h, w, 3) from (n, h, w, channels); opacity, the second or fourth channel, is left out.

    Warns where it was not full, since what lies under transparent pixels is then seen. Raises `UserError` for another
    number of channels than 1 to 4.
    """
    channels = values.shape[-1]
    if channels not in (1, 2, 3, 4):
        raise UserError(f"{path}: {channels} channels are neither gray nor red, green, blue")
    if channels in (2, 4):
        opacity = values[..., -1]
        if bool((opacity != opacity.max()).any()):
            warnings.warn(f"{path}: opacity is left out; some pixels are transparent", DataWarning, stacklevel=2)
        values = values[..., :-1]
    return values[..., 0] if values.shape[-1] == 1 else values


def checked(path: Path, stack: Stack) -> Stack:
    """The stack, if it holds values, and all are finite. Else raises `UserError`."""
    if not stack.values.size:
        raise UserError(f"{path}: holds no values; its array is {_size(stack.values)}")
    if not np.isfinite(stack.values).all():
        raise UserError(f"{path}: holds NaN or infinite values: repair or leave out the image")
    return stack


def check_scaling(scaling: Scaling) -> None:
    """Raise `UserError` if `scaling` is neither one of `SCALINGS` nor a window (low, high)."""
    if isinstance(scaling, str):
        if scaling not in SCALINGS:
            raise UserError(f"scaling={scaling!r} must be {', '.join(SCALINGS)}, or a window of two values: low, high")
    elif len(scaling) != 2 or not -math.inf < scaling[0] < scaling[1] < math.inf:
        raise UserError(f"scaling={list(scaling)} must be a window of two finite values, the lower one first")


def scale(path: Path, stack: Stack, scaling: Scaling) -> np.ndarray:
    """The values in [0, 1], float32, in the shape of `stack.values`. Raises `UserError` where `scaling` does not fit.

    range: black is 0, white is what the file says; values beyond are refused. max: the largest value of the file is 1.
    percentile: the 0.1th percentile of the file is 0, the 99.9th is 1. A window (low, high): low is 0, high is 1.
    Percentiles and windows clip what lies outside. Warns if the result spans less than a tenth of [0, 1].
    """
    check_scaling(scaling)
    values = stack.values
    if values.dtype in (bool, np.float16):  # booleans can't be subtracted, and float16 ends at 65504
        values = values.astype(np.float32)
    least, largest = float(values.min()), float(values.max())
    if scaling == "range":
        low, high = 0.0, _white(path, stack, least, largest)
    elif scaling == "max":
        if least < 0 or largest <= 0:
            raise UserError(f"{path}: values from {least:g} to {largest:g} can't be divided by their largest")
        low, high = 0.0, largest
    elif scaling == "percentile":
        low, high = (float(v) for v in np.percentile(values, PERCENTILES))
        if low == high:
            raise UserError(f"{path}: its percentiles {PERCENTILES} are both {low:g}: choose a window")
    else:
        low, high = (float(v) for v in scaling)
    if not high - low < math.inf:
        raise UserError(
            f"{path}: values from {least:g} to {largest:g} span more than numbers can hold: choose a window"
        )
    scaled = ((values - low if low else values) / (high - low)).astype(np.float32)
    if scaling != "max":  # of the range, only rounding is beyond
        scaled = scaled.clip(0, 1)
    span = float(scaled.max()) - float(scaled.min())
    if 0 < span < DIM:
        warnings.warn(
            f"{path}: values from {least:g} to {largest:g} fill {span:.1%} of [0, 1] under the scaling {scaling!r}; "
            "is that what they mean? Else choose max, percentile or a window",
            DataWarning,
            stacklevel=2,
        )
    return scaled


def _white(path: Path, stack: Stack, least: float, largest: float) -> float:
    advice = "choose the scaling max, percentile, or a window of two values"
    if stack.white is None:
        kind = stack.values.dtype
        raise UserError(
            f"{path}: values from {least:g} to {largest:g} as {kind}: nothing says which is white; {advice}"
        )
    if least < 0 or largest > stack.white * (1 + ROUNDING) or stack.white <= 0:
        raise UserError(f"{path}: values from {least:g} to {largest:g} must lie in [0, {stack.white:g}]; {advice}")
    return stack.white


def _ambiguous(path: Path, array: np.ndarray, *orders: str) -> UserError:
    return UserError(f"{path}: an array {_size(array)} may be {' or '.join(orders)}: say which by axes")


def _size(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape))
