"""Ridges evaluated strip by strip: the same numbers as at once, and no array of the responses of all filters."""

from __future__ import annotations

import cases
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from elder import regularizers
from elder.networks import strips
from elder.regularizers.base import Energy

RIDGES = ("convex_ridge", "weakly_convex_ridge", "crr", "wcrr")


class Largest(TorchDispatchMode):
    """The most numbers that one tensor held."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, torch.Tensor):
                self.numbers = max(self.numbers, made.numel())
        return out


@pytest.mark.parametrize("name", RIDGES)
class TestStrips:
    # One row, some rows, two images of three (of 3 filters, of 32), and all at once.
    @pytest.mark.parametrize("limit", [1, 250, 700, 7000, 10**9])
    @pytest.mark.parametrize("levels", [1, 3], ids=["one sigma", "a sigma each"])
    def test_they_add_up(self, name, limit, levels, rng, monkeypatch):
        energy, x = cases.regularizer(name), cases.randn((3, 1, 11, 9), rng)
        sigma = torch.tensor([0.1, 0.03, 0.3]).double()[:levels].squeeze()
        value, gradient = energy.value_and_grad(x, sigma)
        monkeypatch.setattr(strips, "ON_PROCESSOR", limit)
        with torch.no_grad():
            found, back = energy.value_and_grad(x, sigma)
        torch.testing.assert_close(found, value.expand(3), rtol=1e-12, atol=0)
        torch.testing.assert_close(back, gradient, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("size", [(1, 1), (2, 9), (5, 3)])
    def test_pictures_smaller_than_the_filters(self, name, size, rng):
        energy, x, sigma = cases.regularizer(name), cases.randn((2, 1, *size), rng), torch.tensor(0.1).double()
        value, gradient = energy.value_and_grad(x, sigma)
        with torch.no_grad():
            found, back = energy.value_and_grad(x, sigma)
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(back, gradient, rtol=1e-10, atol=1e-12)
        if name in ("crr", "wcrr"):  # with circular boundaries, eight by eight copies are one picture
            many, wide = energy.value_and_grad(x.tile(8, 8), sigma)
            torch.testing.assert_close(many, 64 * value, rtol=1e-10, atol=1e-15)
            torch.testing.assert_close(wide, gradient.tile(8, 8), rtol=1e-10, atol=1e-12)

    def test_no_tensor_holds_all_responses(self, name, monkeypatch):
        monkeypatch.setattr(strips, "ON_PROCESSOR", 10_000)
        energy = regularizers.make(name).requires_grad_(False)
        assert isinstance(energy, Energy)
        with torch.no_grad(), Largest() as largest:
            energy.value_and_grad(torch.zeros(2, 1, 128, 96), torch.tensor(0.1))
        # A picture with a border, times two images and the eight features before the last convolution of a chain.
        assert largest.numbers < 2 * 8 * 140 * 110
