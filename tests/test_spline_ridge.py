"""CRR and WCRR: the spline and its potential, the norm of the chain, and the bounds of the energy that follow."""

from __future__ import annotations

import math
from typing import Any

import cases
import pytest
import torch
from torch import Tensor

from elder import UserError, regularizers
from elder.backend import autocast
from elder.networks.chain import Chain, analyze, norm_bound, synthesize
from elder.networks.spline import lookup
from elder.regularizers.spline_ridge import SplineRidge
from elder.tensors import dot

CHAINS = [(1, (4, 8, 60), 5), (3, (4, 6), 5), (2, (5,), 3), (1, (3, 2, 4), 7)]


def chain(channels: int, widths: tuple[int, ...], kernel_size: int) -> Chain:
    torch.manual_seed(3)
    return Chain(channels, widths, kernel_size).double().requires_grad_(False)


def hessian(energy: SplineRidge, x: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(lambda z: energy.grad(z, torch.tensor(0.1)), x)
    return jacobian.view(x.numel(), x.numel())


class TestSpline:
    def test_it_is_the_polygon_through_its_knots(self, rng):
        slopes = cases.randn((1, 3), rng)
        a, b, c = (0.5 * slopes[0]).tolist()
        t = torch.tensor([[-9.0, -1.5, -0.75, -0.5, 0.0, 0.25, 0.5, 1.25, 1.5, 4.0]]).double()
        total = a + b + c
        expected = [-total, -total, -(a + b / 2), -a, 0, a / 2, a, a + b + c / 2, total, total]
        torch.testing.assert_close(lookup(t, slopes, 0.5)[1], torch.tensor([expected]).double())

    def test_the_potential_is_its_integral(self, rng):
        slopes = cases.randn((1, 5), rng)
        for end in (-3.1, -0.4, 0.9, 2.2):
            # The midpoint rule on cells that end at knots is exact for linear functions.
            edges = torch.tensor([*(0.3 * k for k in range(-8, 9)), end], dtype=torch.float64).sort().values
            edges = edges[(edges >= min(0, end)) & (edges <= max(0, end))]
            middles, widths = (edges[1:] + edges[:-1]) / 2, edges.diff()
            area = math.copysign(1, end) * float((lookup(middles.unsqueeze(0), slopes, 0.3)[1] * widths).sum())
            potential, _ = lookup(torch.tensor([[end]], dtype=torch.float64), slopes, 0.3)
            assert float(potential) == pytest.approx(area, abs=1e-12)

    def test_zero_has_the_slope_of_its_cell(self, rng):
        """A flat region gives responses of exactly zero, where |t| would have no second derivative."""
        slopes = cases.randn((1, 5), rng)
        t = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(lookup(t, slopes, 0.3)[1].sum(), t)
        assert float(slope) == float(slopes[0, 0])

    def test_each_image_has_its_row_of_slopes(self, rng):
        t, slopes = cases.randn((2, 3, 4), rng), cases.randn((2, 5), rng)
        for whole, first, last in zip(
            lookup(t, slopes, 0.3), lookup(t[:1], slopes[:1], 0.3), lookup(t[1:], slopes[1:], 0.3), strict=True
        ):
            assert torch.equal(whole, torch.cat([first, last]))

    def test_what_is_not_finite_stays_visible(self):
        assert lookup(torch.tensor([[math.nan]]), torch.ones(1, 2), 0.5)[1].isnan().all()


@pytest.mark.parametrize(("channels", "widths", "kernel_size"), CHAINS)
class TestChain:
    def test_adjoint(self, channels, widths, kernel_size, rng):
        kernels = chain(channels, widths, kernel_size).scaled()
        x, u = cases.randn((2, channels, 9, 12), rng), cases.randn((2, widths[-1], 9, 12), rng)
        torch.testing.assert_close(dot(analyze(kernels, x), u), dot(x, synthesize(kernels, u)))

    @pytest.mark.parametrize("size", [(9, 12), (8, 7), (40, 33)], ids=str)
    def test_its_norm_is_at_most_one_for_any_size_and_not_far_below(self, channels, widths, kernel_size, size):
        kernels = chain(channels, widths, kernel_size).scaled()
        impulse = torch.zeros(channels, channels, *size, dtype=torch.float64)
        impulse[:, :, 0, 0] = torch.eye(channels)
        gram = torch.fft.fft2(synthesize(kernels, analyze(kernels, impulse))).flatten(2).permute(2, 0, 1)
        norm = float(torch.linalg.matrix_norm(gram, ord=2).max().sqrt())
        assert norm <= 1 + 1e-12
        assert norm > (0.93 if size == (40, 33) else 0.7)

    def test_a_constant_picture_gives_nothing(self, channels, widths, kernel_size, rng):
        colors = cases.randn((1, channels, 1, 1), rng).expand(1, channels, 9, 12)
        assert float(analyze(chain(channels, widths, kernel_size).scaled(), colors).abs().max()) < 1e-12


def test_the_bound_has_the_gradient_that_training_needs(rng):
    kernels = [cases.randn((2, 2, 3, 3), rng).requires_grad_(), cases.randn((3, 2, 3, 3), rng).requires_grad_()]
    assert torch.autograd.gradcheck(lambda *k: norm_bound(k), kernels, fast_mode=True)


def test_the_bound_is_one_in_low_precision_too(rng):
    kernels = [cases.randn((2, 2, 3, 3), rng).float(), cases.randn((3, 2, 3, 3), rng).float()]
    with autocast("bf16", torch.device("cpu")):
        bound = norm_bound(kernels)
    assert bound == norm_bound(kernels)


class TestBounds:
    @pytest.mark.parametrize("scale", [0.003, 0.03, 0.3])
    def test_the_convex_one_is_convex(self, scale, rng):
        energy = cases.regularizer("crr")
        eigenvalues = torch.linalg.eigvalsh(hessian(energy, scale * cases.randn((1, 1, 6, 7), rng)))
        assert energy.weak_convexity(0.1) == 0
        assert eigenvalues[0] >= -1e-10
        assert 1e-6 < eigenvalues[-1] <= energy.lipschitz(0.1)

    @pytest.mark.parametrize("scale", [0.03, 0.3])
    def test_the_weakly_convex_one_keeps_to_its_constant(self, scale, rng):
        energy = cases.regularizer("wcrr")
        with torch.no_grad():
            energy.falling.add_(4.0)
        eigenvalues = torch.linalg.eigvalsh(hessian(energy, scale * cases.randn((1, 1, 6, 7), rng)))
        assert -energy.weak_convexity(0.1) <= eigenvalues[0] < -0.02
        assert energy.weak_convexity(0.1) <= 1
        assert max(-eigenvalues[0], eigenvalues[-1]) <= energy.lipschitz(0.1)


def test_gradients_of_far_apart_pictures_keep_to_the_lipschitz_constant(rng):
    energy = cases.regularizer("wcrr", channels=3)
    x, z = cases.randn((4, 3, 9, 12), rng), cases.randn((4, 3, 9, 12), rng)
    sigma = torch.tensor([0.01, 0.05, 0.2, 0.7], dtype=torch.float64)
    gap = energy.grad(x, sigma) - energy.grad(z, sigma)
    bound = torch.tensor([energy.lipschitz(float(s)) for s in sigma], dtype=torch.float64)
    assert bool((dot(gap, gap).sqrt() <= bound * dot(x - z, x - z).sqrt()).all())


def test_at_the_start_the_energy_scales_with_picture_and_noise(rng):
    """h(cx, cσ) = c² h(x, σ): what is noise at one level is noise at every other."""
    torch.manual_seed(0)
    energy: Any = regularizers.make("wcrr", filters=[2, 6], kernel_size=3).double()
    x = cases.randn((1, 1, 9, 12), rng)
    first, second = energy.value(x, torch.tensor(0.05)), energy.value(4 * x, torch.tensor(0.2))
    torch.testing.assert_close(second, 16 * first, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"filters": []}, "1 to 6 widths"),
        ({"filters": [4, 0]}, "widths >= 1"),
        ({"filters": [4, 8000]}, "up to 4096"),
        ({"kernel_size": 4}, "odd kernel_size"),
        ({"channels": 33}, "1 to 32 channels"),
        ({"cells": 0}, "1 to 4096 cells"),
    ],
)
def test_wrong_settings_name_themselves(settings, told):
    with pytest.raises(UserError, match=told):
        regularizers.make("wcrr", **settings)
