"""Smooth activations by name, each with its derivative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

# Near a rectifier, and smooth on the scale of a network's activations.
SHARPNESS = 10.0
# An activation acts on any shape.
Layer = Float[Tensor, "*n"]


@dataclass(frozen=True)
class Activation:
    """φ, elementwise; and its part in a vector-Jacobian product, v · φ'(u), from a = φ(u): u need not be kept."""

    apply: Callable[[Layer], Layer]
    pullback: Callable[[Layer, Layer], Layer]  # (v, a) -> v · φ'(u)


def elu(u: Layer) -> Layer:
    """u where u > 0, else eᵘ − 1; in place where nothing records."""
    return F.elu(u, inplace=not torch.is_grad_enabled())


def elu_pullback(v: Layer, a: Layer) -> Layer:
    """v · (1 where a > 0, else a + 1)."""
    return torch.ops.aten.elu_backward(v, 1.0, 1.0, 1.0, True, a)


def softplus(u: Layer) -> Layer:
    """log(1 + e^{βu}) / β with β = `SHARPNESS`."""
    return F.softplus(u, beta=SHARPNESS, threshold=40)


def softplus_pullback(v: Layer, a: Layer) -> Layer:
    """v · (1 − e^{−βa})."""
    return -v * torch.expm1(-SHARPNESS * a)


# With elu an energy has a continuous gradient, and a Hessian everywhere except where some activation is zero, at which
# it jumps; with softplus it is infinitely often differentiable. ReLU is not among them: ∇h would jump.
ACTIVATIONS = {"elu": Activation(elu, elu_pullback), "softplus": Activation(softplus, softplus_pullback)}


def named(name: str) -> Activation:
    """The activation `name`. Raises `ValueError` for an unknown one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r} must be one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
