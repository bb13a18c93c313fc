"""What the tables of results are made of: sections that are replaced, evaluations, D(x*), and BM3D."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from elder import io, problems
from elder.evaluation import bm3d
from elder.evaluation.evaluate import evaluate
from elder.evaluation.quality import psnr
from elder.problems.samples import measure
from pipeline.report import page, results
from pipeline.report.tables import Method
from stages.results import image_row


def test_a_section_takes_the_place_of_its_old_one_alone():
    document = results.replaced(results.replaced("# Results\n", "a", "one"), "b", "two")
    again = results.replaced(document, "a", r"three \1")
    assert again == document.replace("one", r"three \1")
    assert again.startswith("# Results\n\n<!-- a: begin -->\nthree")


def test_d_of_x_and_evaluations_are_those_of_the_solve(small_model):
    images = [torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(2))]
    (result,) = evaluate(small_model, measure(small_model.problem, ["a"], images))
    sigma = torch.tensor(small_model.hyperparameters.sigma)
    with torch.no_grad():
        denoised = result.x - small_model.regularizer.gradient(result.x, sigma)
    row = image_row(result)
    assert row["psnr_denoised"] == pytest.approx(float(psnr(denoised, images[0])))
    assert row["psnr_denoised"] != row["psnr"]
    assert row["evaluations"] > row["steps"] > 0
    assert "seconds" not in row


@pytest.mark.parametrize("channels", [1, 3])
def test_bm3d_gets_the_noisy_picture_and_its_level(channels, monkeypatch):
    """The package may not be installed: one with its interface stands in, and halves contrasts."""
    stand_in, given = ModuleType("bm3d"), []

    def halved(noisy: np.ndarray, sigma_psd: float) -> np.ndarray:
        given.append((noisy.shape, sigma_psd))
        return noisy.astype(np.float64) / 2

    stand_in.bm3d = stand_in.bm3d_rgb = halved
    monkeypatch.setitem(sys.modules, "bm3d", stand_in)
    problem = problems.make("denoise", {"noise": 0.2})
    samples = measure(problem, ["a"], [torch.rand(1, channels, 8, 9, generator=torch.Generator().manual_seed(1))])
    (result,) = bm3d.evaluate_bm3d(samples, problem.noise)
    assert given == [((8, 9) if channels == 1 else (8, 9, 3), 0.2)]
    torch.testing.assert_close(result.x, samples[0].y / 2)


def test_without_bm3d_the_text_says_so(monkeypatch):
    monkeypatch.setattr(bm3d, "available", lambda: False)
    assert "not installed" in results.against_bm3d(0.1)


def test_who_stays_behind_the_implicit_one_is_told_with_its_denoiser(tmp_path):
    def row(regularizer: str, psnr: float, phase: str = "finetuned") -> Method:
        return Method(regularizer, phase, regularizer, {"psnr": psnr}, [], 0.0)

    for name, score in (("scalar", 27.0), ("red", 28.0), ("implicit", 28.25)):
        (tmp_path / name).mkdir()
        io.write_json(tmp_path / name / "metrics.json", {"denoising_psnr": {"0.02": 1.0, "0.1": score}})
    methods = [row("implicit", 30.0), row("scalar", 29.85), row("red", 29.95), row("red", 20.0, "pretrained")]
    assert page.behind(methods, tmp_path) == (
        "More than 0.1 dB below the implicit one: scalar. "
        "As denoisers on validation (σ = 0.1), where DEQ training began: scalar 27.00 dB, implicit 28.25 dB"
    )
    assert page.behind(methods[:1] + methods[2:], tmp_path) == ""
    assert page.behind(methods[1:], tmp_path) == ""
