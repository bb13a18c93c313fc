"""Parallel-beam computed tomography."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from elder.operators import strips
from elder.operators.base import Operator
from elder.operators.views import VIEWS, PerRay, RayIndex, Views
from elder.shapes import Anything, Factor, Images, Index

PerAngle = Float64[Tensor, "a"]
Sinogram = Float[Tensor, "b c a d"]

# Rays nearer than this, in radians and in pixels, are one ray.
NEAR = 1e-9
# Views are used if they need at most this much arithmetic, relative to none.
WASTE = 1.25


@dataclass(frozen=True, eq=False)
class Radon(Operator):
    """Parallel-beam projections of pictures of `size`, (b, c, h, w) -> (b, c, angles, detectors); made by `Radon.of`.

    A detector measures the integral of the picture over the strip of unit width around its ray. Pixels are unit
    squares, so each counts by the area that it shares with the strip. Ray sums of a uniform picture are then right at
    every angle, and the strips of one angle share out every pixel completely. The ray of the angle θ and the detector j
    is x cos θ + y sin θ = j − (detectors − 1)/2 − offset, where x counts columns to the right and y rows downward, in
    pixels from the center of the picture. The factor 1/√(angles · detectors) brings ‖A‖ near 1.

    Where the rays are symmetric, the matrix stores one of up to eight equivalent rays, and it is applied to as many
    views of the picture at once; see `Views`. A and Aᵀ are stored both, so the adjoint is exact.
    """

    matrix: Float[Tensor, "stored pixels"]  # (stored rays, h * w), CSR
    transpose: Float[Tensor, "pixels stored"]  # (h * w, stored rays), CSR
    views: Views
    place: RayIndex  # (angles * detectors,) in the products of stored rays with views
    spectrum: Float[Tensor, "p q"]  # see `_spectrum`, (2h, w + 1)
    size: tuple[int, int]
    theta: PerAngle  # (angles,) in radians, float64
    detectors: int
    offset: float

    @classmethod
    def of(
        cls,
        theta: Float[Tensor, " a"],
        size: tuple[int, int],
        dtype: torch.dtype = torch.float32,
        *,
        detectors: int | None = None,
        offset: float = 0.0,
    ) -> Radon:
        """The projections at the angles `theta`, (angles,) in radians.

        detectors: of unit width; if `None`, as many as the diagonal is long. offset: by how many detectors the
        projected center of the picture lies beyond the middle of the detectors.
        """
        h, w = size
        theta = theta.double()
        n, detectors = len(theta), detectors or math.ceil(math.hypot(h, w)) + 1
        s = torch.arange(detectors, dtype=torch.float64) - (detectors - 1) / 2 - offset
        rays = _fewest(theta.repeat_interleave(detectors), s.repeat(n), square=h == w)
        areas = strips.areas(rays.theta, rays.s, size, dtype)
        np.divide(areas.data, math.sqrt(n * detectors), out=areas.data)
        matrix = _csr(areas.indptr, areas.indices, areas.data, (len(rays.theta), h * w))
        areas = areas.tocsc()  # whose columns are the rows of the transpose
        transpose = _csr(areas.indptr, areas.indices, areas.data, (h * w, len(rays.theta)))
        spectrum = _spectrum(theta, size).to(dtype) / (n * detectors)
        return cls(matrix, transpose, rays.views, rays.place, spectrum, (h, w), theta, detectors, offset)

    @property
    def angles(self) -> int:
        """The number of angles."""
        return len(self.theta)

    def check(self, y: Anything) -> None:
        """Raise `ValueError` if y does not have the shape and type of a measurement."""
        if y.ndim != 4 or y.is_complex() or tuple(y.shape[-2:]) != (self.angles, self.detectors):
            h, w = self.size
            expected = f"(b, c, {self.angles}, {self.detectors})"
            raise ValueError(f"the sinogram of {h}x{w} images must be real {expected}; got {tuple(y.shape)}")

    def A(self, x: Images) -> Sinogram:
        """Line integrals, (b, c, h, w) -> (b, c, angles, detectors).

        Raises `ValueError` for pictures of another size.
        """
        if tuple(x.shape[-2:]) != tuple(self.size):
            raise ValueError(f"the operator is for images {self.size[0]}x{self.size[1]}; got {tuple(x.shape[-2:])}")
        h, w = self.size
        seen = self.views.stack(x.reshape(-1, h, w)).view(-1, h * w)
        stored = self.matrix @ seen.T
        y = stored.view(self.matrix.shape[0] * self.views.count, -1)[self.place]
        return y.T.reshape(*x.shape[:2], self.angles, self.detectors)

    def AT(self, y: Sinogram) -> Images:
        """Back-projection without a filter, (b, c, angles, detectors) -> (b, c, h, w)."""
        h, w = self.size
        rays = y.reshape(-1, self.angles * self.detectors).T
        stored = y.new_zeros(self.matrix.shape[0] * self.views.count, rays.shape[1]).index_add(0, self.place, rays)
        seen = self.transpose @ stored.view(self.matrix.shape[0], -1)
        return self.views.merge(seen.T.reshape(self.views.count, -1, h, w)).view(*y.shape[:2], h, w)

    def prox_solve(self, v: Images, step: Factor) -> Images:
        """(I + τ AᵀA)⁻¹ v by conjugate gradients, see `Operator`, preconditioned by its inverse without borders.

        Inside of the picture AᵀA is a convolution with a kernel near 1/|r|. (I + τ AᵀA)⁻¹ is taken to be the
        convolution that inverts it in the plane: it is computed on pictures twice as large, zero around v.
        """
        (h, w), inverse = self.size, 1 / (1 + step * self.spectrum)

        def precondition(r: Images) -> Images:
            return torch.fft.irfft2(inverse * torch.fft.rfft2(r, s=(2 * h, 2 * w)), s=(2 * h, 2 * w))[..., :h, :w]

        return self.prox_solve_iteratively(v, step, precondition=precondition)

    def select(self, index: Index) -> Radon:
        """The operator of the images `index` of the batch."""
        return self


@dataclass(frozen=True, eq=False)
class _Rays:
    """The rays (θ, s) that are stored, and where those of a sinogram are among the products of these with the views."""

    views: Views
    theta: Float64[Tensor, " stored"]  # the rays of one angle next to each other
    s: Float64[Tensor, " stored"]
    place: RayIndex  # of the rays of the sinogram

    @classmethod
    def of(cls, views: Views, theta: PerRay, s: PerRay) -> _Rays:
        """The rays that the views leave of (θ, s), (rays,) both."""
        theta, s, view = views.fold(theta, s)
        (angles, of_angle), (positions, of_position) = _distinct(theta), _distinct(s)
        stored, index = torch.unique(of_angle * len(positions) + of_position, return_inverse=True)
        theta, s = angles[stored // len(positions)], positions[stored % len(positions)]
        return cls(views, theta, s, index * views.count + view)

    @property
    def waste(self) -> float:
        """The products of stored rays with views, relative to the rays of the sinogram."""
        return len(self.theta) * self.views.count / len(self.place)


def _fewest(theta: PerRay, s: PerRay, square: bool) -> _Rays:
    """The rays (θ, s) with the most views that they have in common."""
    choices = (_Rays.of(views, theta, s) for views in VIEWS if square or not views.transposed)
    return next(rays for rays in choices if rays.waste <= WASTE or rays.views.count == 1)


def _distinct(values: PerRay) -> tuple[Float64[Tensor, " found"], RayIndex]:
    """The values, in order, that are further apart than rounding; and for each of `values` which one it is."""
    keys, index = torch.unique(values.div(NEAR).round(), return_inverse=True)
    return values.new_full(keys.shape, torch.inf).scatter_reduce(0, index, values, "amin"), index


def _csr(
    starts: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]
) -> Float[Tensor, "rows columns"]:
    with warnings.catch_warnings():  # CSR tensors are announced as beta at their first use
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(starts),
            torch.from_numpy(columns),
            torch.from_numpy(values),
            shape,
            check_invariants=False,
        )


def _spectrum(theta: PerAngle, size: tuple[int, int]) -> Float64[Tensor, "2*{size[0]} {size[1]}+1"]:
    """The Fourier transform of the kernel of AᵀA without its scale, on the grid of rfft2 of twice the size.

    The kernel is the response to a single pixel in the middle of a picture that holds every difference of two pixels of
    `size`. The three detectors in the middle are all that see the pixel. Rays that the detectors miss are not left out.
    """
    h, w = size
    whole = (2 * h - 1, 2 * w - 1)
    s = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).repeat(len(theta))
    areas = strips.areas(theta.repeat_interleave(3), s, whole, torch.float64)
    pixel = areas @ np.eye(1, whole[0] * whole[1], whole[0] * whole[1] // 2)[0]
    response = areas.T @ pixel
    kernel = F.pad(torch.from_numpy(response).view(whole), (1, 0, 1, 0))  # differences from −h to h − 1
    return torch.fft.rfft2(torch.fft.ifftshift(kernel)).real.clamp(min=0)
