"""Parallel-beam computed tomography."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from elder.operators.base import Operator


@dataclass(frozen=True, eq=False)
class Radon(Operator):
    """Parallel-beam projections of pictures of `size`, (b, c, h, w) -> (b, c, angles, detectors); made by `Radon.of`.

    Every pixel shares its value between the two detectors nearest to its projection, by their distance (the
    pixel-driven model). A is a sparse matrix and Aᵀ its transpose, so the adjoint is exact. Scaled by
    1/√(angles · detectors), which brings ‖A‖ near 1.
    """

    matrix: Tensor  # (angles * detectors, h * w), CSR
    transpose: Tensor  # (h * w, angles * detectors), CSR
    size: tuple[int, int]
    angles: int
    detectors: int

    @classmethod
    def of(cls, angles: Tensor, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Radon:
        """The projections at `angles`, (n,) in radians; as many unit detectors as the diagonal is long."""
        h, w = size
        n, detectors = len(angles), math.ceil(math.hypot(h, w)) + 1
        rows = torch.arange(h, dtype=torch.float64).view(-1, 1) - (h - 1) / 2
        cols = torch.arange(w, dtype=torch.float64).view(1, -1) - (w - 1) / 2
        theta = angles.double().view(-1, 1, 1)
        position = cols * torch.cos(theta) + rows * torch.sin(theta) + (detectors - 1) / 2  # (n, h, w)
        lower = position.floor().clamp(0, detectors - 2)
        share = position - lower
        ray = torch.arange(n).view(-1, 1, 1) * detectors + lower.long()
        pixel = torch.arange(h * w).view(1, h, w).expand_as(ray)
        where = torch.stack([torch.cat([ray, ray + 1]).flatten(), torch.cat([pixel, pixel]).flatten()])
        values = torch.cat([1 - share, share]).flatten().to(dtype) / math.sqrt(n * detectors)
        shape = (n * detectors, h * w)
        with warnings.catch_warnings():  # CSR tensors are announced as beta at their first use
            warnings.simplefilter("ignore", UserWarning)
            matrix = torch.sparse_coo_tensor(where, values, shape, check_invariants=False).coalesce()
            return cls(matrix.to_sparse_csr(), matrix.t().coalesce().to_sparse_csr(), size, n, detectors)

    def check(self, y: Tensor) -> None:
        """Raise `ValueError` if y does not have the shape and type of a measurement."""
        if y.ndim != 4 or y.is_complex() or tuple(y.shape[-2:]) != (self.angles, self.detectors):
            h, w = self.size
            expected = f"(b, c, {self.angles}, {self.detectors})"
            raise ValueError(f"the sinogram of {h}x{w} images must be real {expected}; got {tuple(y.shape)}")

    def A(self, x: Tensor) -> Tensor:
        """Line integrals, (b, c, h, w) -> (b, c, angles, detectors)."""
        if tuple(x.shape[-2:]) != tuple(self.size):
            raise ValueError(f"the operator is for images {self.size[0]}x{self.size[1]}; got {tuple(x.shape[-2:])}")
        y = self.matrix @ x.reshape(-1, self.size[0] * self.size[1]).T
        return y.T.reshape(*x.shape[:2], self.angles, self.detectors)

    def AT(self, y: Tensor) -> Tensor:
        """Back-projection without a filter, (b, c, angles, detectors) -> (b, c, h, w)."""
        x = self.transpose @ y.reshape(-1, self.angles * self.detectors).T
        return x.T.reshape(*y.shape[:2], *self.size)

    def select(self, index: Tensor) -> Radon:
        """The operator of the images `index` of the batch."""
        return self
