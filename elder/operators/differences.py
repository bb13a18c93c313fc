"""Finite differences of pictures, and their adjoint."""

from __future__ import annotations

import torch

from elder.shapes import Differences, Images


def gradient(x: Images) -> Differences:
    """Forward differences down and to the right, zero at the far border, (b, c, h, w) -> (2, b, c, h, w)."""
    d = x.new_zeros(2, *x.shape)
    d[0, ..., :-1, :] = x.diff(dim=-2)
    d[1, ..., :, :-1] = x.diff(dim=-1)
    return d


def gradient_adjoint(p: Differences) -> Images:
    """The adjoint of `gradient`, (2, b, c, h, w) -> (b, c, h, w)."""
    x = torch.zeros_like(p[0])
    x[..., :-1, :] -= p[0, ..., :-1, :]
    x[..., 1:, :] += p[0, ..., :-1, :]
    x[..., :, :-1] -= p[1, ..., :, :-1]
    x[..., :, 1:] += p[1, ..., :, :-1]
    return x
