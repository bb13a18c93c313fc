"""Metrics and total variation against scikit-image and closed forms."""

from __future__ import annotations

import cases
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from skimage.restoration import denoise_tv_chambolle

from elder.evaluation.quality import psnr, ssim
from elder.fidelity import LeastSquares
from elder.operators import Identity, MaskedFourier
from elder.operators.differences import gradient, gradient_adjoint
from elder.problems import masks
from elder.solvers.primal_dual import reconstruct_tv, total_variation


def test_psnr_is_of_the_clipped_picture(rng):
    truth, x = torch.rand((2, 1, 9, 8), generator=rng), torch.rand((2, 1, 9, 8), generator=rng) * 1.4 - 0.2
    for i in range(2):
        expected = peak_signal_noise_ratio(truth[i].numpy(), x[i].clamp(0, 1).numpy(), data_range=1)
        assert float(psnr(x, truth)[i]) == pytest.approx(expected, rel=1e-6)


def test_ssim_of_a_picture_with_itself_is_one(rng):
    x = torch.rand((1, 1, 12, 12), generator=rng)
    assert float(ssim(x, x)) == pytest.approx(1)
    assert float(ssim(1 - x, x)) < 0.5


def test_the_gradient_has_its_adjoint(rng):
    x, p = cases.randn((2, 1, 7, 9), rng), cases.randn((2, 2, 1, 7, 9), rng)
    torch.testing.assert_close((gradient(x) * p).sum(), (x * gradient_adjoint(p)).sum())


def test_denoising_reaches_the_energy_of_scikit_image(rng):
    y = torch.rand((1, 1, 24, 20), generator=rng, dtype=torch.float64)
    fidelity, weight = LeastSquares.of(Identity(), y), 0.2

    def energy(x: torch.Tensor) -> float:
        return float(fidelity.value(x) + weight * total_variation(x))

    x, _ = reconstruct_tv(fidelity, y, weight, tol=1e-9, max_steps=5000)
    reference = denoise_tv_chambolle(y[0, 0].numpy(), weight=weight, eps=1e-12, max_num_iter=20000)
    assert energy(x) <= energy(torch.from_numpy(reference)[None, None]) * (1 + 1e-6)


def test_a_reconstruction_is_optimal(rng):
    """No small change in any of many directions lowers the energy."""
    operator = MaskedFourier(masks.radial((16, 18), 0.4, rng).double())
    truth = torch.zeros((1, 1, 16, 18), dtype=torch.float64)
    truth[..., 4:12, 5:14] = 1
    fidelity, weight = LeastSquares.of(operator, operator.A(truth)), 0.05

    def energy(x: torch.Tensor) -> float:
        return float(fidelity.value(x) + weight * total_variation(x))

    x, _ = reconstruct_tv(fidelity, operator.AT(fidelity.y), weight, tol=1e-10, max_steps=20000)
    for _ in range(20):
        assert energy(x + 1e-3 * cases.randn(x.shape, rng)) > energy(x) - 1e-7
    assert energy(x) < energy(operator.AT(fidelity.y))
    assert energy(x) < energy(truth)
