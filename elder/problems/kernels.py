"""Blur kernels: Gaussian, camera shake, or from a file; non-negative, summing to 1."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from elder import io
from elder.errors import UserError

Kernel = Float[Tensor, "k l"]
# Pixels of a kernel.
LARGEST = 2**22


def gaussian(size: int = 25, sigma: float = 1.6) -> Kernel:
    """An isotropic Gaussian of standard deviation `sigma` pixels, (size, size)."""
    t = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    profile = torch.exp(-(t**2) / (2 * sigma**2))
    kernel = torch.outer(profile, profile)
    return (kernel / kernel.sum()).float()


def motion(generator: torch.Generator, size: int = 25) -> Kernel:
    """The trace of a random camera shake, (size, size): a smooth random walk with inertia, scaled to fit.

    After Boracchi & Foi 2012: a velocity that is damped and pushed at random, its path drawn with bilinear weights.
    """
    steps = 256
    push = torch.randn(steps, 2, generator=generator, dtype=torch.float64)
    # Plain numbers: 256 steps of two numbers each take tensors thirty times as long.
    path = torch.tensor([_walk(along) for along in push.mT.tolist()], dtype=torch.float64).mT
    path = path - (path.amax(0) + path.amin(0)) / 2
    reach = (0.35 + 0.6 * float(torch.rand((), generator=generator, dtype=torch.float64))) * (size - 3) / 2
    path = path / path.abs().max() * reach + (size - 1) / 2
    lower = path.floor().long()
    share = path - lower
    kernel = torch.zeros(size, size, dtype=torch.float64)
    for i in (0, 1):
        for j in (0, 1):
            weight = (share[:, 0] if i else 1 - share[:, 0]) * (share[:, 1] if j else 1 - share[:, 1])
            kernel.index_put_((lower[:, 0] + i, lower[:, 1] + j), weight, accumulate=True)
    return (kernel / kernel.sum()).float()


def _walk(push: list[float]) -> list[float]:
    """The positions of a damped walk along one axis, from 0, its velocity pushed at each step after the first."""
    velocity, path = 0.0, [0.0]
    for p in push[1:]:
        velocity = 0.97 * velocity + 0.1 * p
        path.append(path[-1] + velocity)
    return path


def load(name: str) -> Kernel:
    """The kernel of FILE, or of FILE:INDEX where the file holds several, (k, l), made to sum to 1.

    .mat (a cell array or a stack, in both formats), .npy, .png. Raises `UserError` for anything else.
    """
    path, _, index = name.rpartition(":") if ":" in name and not Path(name).exists() else (name, "", "0")
    if not index.isdigit():
        raise UserError(f"kernel={name}: the part after the colon must be a whole number")
    found = io.read_stack(path)
    if int(index) >= len(found):
        raise UserError(f"kernel={name}: {path} holds {len(found)} kernels, counted from 0")
    return normalized(found[int(index)], f"kernel={name}")


def normalized(values: np.ndarray, source: str) -> Kernel | Float[Tensor, "b 1 k l"]:
    """The kernel (k, l), or one for each image (b, 1, k, l), made to sum to 1. `source` names it in messages.

    Raises `UserError` for an array of another rank, of more than `LARGEST` pixels, or not of real numbers. Raises it,
    too, if a value is negative or not finite, or if all are zero.
    """
    if math.prod(values.shape[-2:]) > LARGEST:
        raise UserError(f"{source} has {values.shape[-2:]} pixels: more than {LARGEST} are no kernel")
    odd = values.ndim not in (2, 4) or (values.ndim == 4 and values.shape[1] != 1)
    if odd or not values.size or values.dtype.kind not in "biuf":
        raise UserError(
            f"{source} must be (k, l), or one for each image (b, 1, k, l), and hold real numbers; got {values.dtype} "
            f"{values.shape}"
        )
    kernel = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
    sums = kernel.sum((-2, -1), keepdim=True)
    if not bool(kernel.isfinite().all()) or float(kernel.min()) < 0 or float(sums.min()) <= 0:
        raise UserError(f"{source} must be finite, not negative and not zero")
    return (kernel / sums).float()
