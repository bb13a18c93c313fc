"""The contract of a linear forward operator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch

from elder.backend import to_device
from elder.linear.base import Map
from elder.linear.cg import conjugate_gradients
from elder.shapes import Anything, Factor, Images, Index, Measurement, Multiplier


class Operator(ABC):
    """A linear map A from pictures (b, c, h, w) to measurements, with its exact adjoint.

    A subclass gives `A`, `AT` and `select`; `normal` and `prox_solve` have defaults that a subclass replaces
    where it knows a basis in which AᵀA is diagonal. One that knows it for the Fourier basis says so by `spectral`, and
    gives `weighted_solve`, which lets solvers work in the metric of natural pictures.
    """

    spectral: ClassVar[bool] = False

    @abstractmethod
    def A(self, x: Images) -> Measurement:
        """A x."""

    @abstractmethod
    def AT(self, y: Measurement) -> Images:
        """Aᵀ y, a real picture (b, c, h, w)."""

    @abstractmethod
    def select(self, index: Index) -> Operator:
        """The operator of the images `index` of the batch alone."""

    def to(self, device: torch.device | str) -> Self:
        """This operator with its tensors on the device."""
        return to_device(self, device)

    def check(self, y: Anything) -> None:
        """Raise `ValueError` when `y` can't be a measurement of this operator."""

    def normal(self, x: Images) -> Images:
        """AᵀA x, (b, c, h, w) -> (b, c, h, w)."""
        return self.AT(self.A(x))

    def weighted_solve(self, v: Images, weights: Multiplier) -> Images:
        """(AᵀA + W)⁻¹ v with W = F⁻¹ diag(weights) F, in closed form.

        v: (b, c, h, w); weights W(ω) > 0, with W(ω) = W(−ω): broadcast to (b, c, h, w), on the grid of fft2.
        Raises `NotImplementedError` for an operator that has no closed form for it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no closed form for this: see `spectral`")

    def prox_solve(self, v: Images, step: Factor) -> Images:
        """(I + τ AᵀA)⁻¹ v: in closed form where a subclass knows one, else by `prox_solve_iteratively`.

        v: (b, c, h, w); step τ > 0: (b, 1, 1, 1) or scalar.
        """
        return self.prox_solve_iteratively(v, step)

    def prox_solve_iteratively(
        self,
        v: Images,
        step: Factor,
        *,
        tol: float | None = None,
        max_steps: int = 200,
        precondition: Map | None = None,
    ) -> Images:
        """(I + τ AᵀA)⁻¹ v by conjugate gradients to a relative residual of `tol`: 1e-6 in float32, 1e-12 in float64.

        v: (b, c, h, w); step τ > 0: (b, 1, 1, 1) or scalar. precondition: a symmetric positive definite map near the
        inverse. An operator that needs more steps, or has a preconditioner, calls this from its own `prox_solve`.
        Raises `ArithmeticError` when `max_steps` do not reach `tol`.
        """
        if tol is None:
            tol = 1e-12 if v.dtype == torch.float64 else 1e-6
        # With a preconditioner the first step is better than this guess, and zero costs no product.
        start = v / (1 + step) if precondition is None else None

        def system(z: Images) -> Images:
            return z + step * self.normal(z)

        return conjugate_gradients(system, v, start, tol=tol, max_steps=max_steps, precondition=precondition)
