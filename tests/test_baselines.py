"""Quality measures, and total variation against scikit-image and closed forms; baselines, their tables and files."""

from __future__ import annotations

import csv
import json
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace

import cases
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor

from elder import io, problems
from elder.cli import main
from elder.evaluation import baselines
from elder.evaluation.quality import BOUND, psnr, ssim
from elder.evaluation.results import Result, deviation, mean, mean_guess, succeeded
from elder.fidelity import Fidelity, HardConstraint, LeastSquares
from elder.operators import Blur, Identity, MaskedFourier, Masking, relative_misfit
from elder.operators.differences import gradient, gradient_adjoint
from elder.problems import kernels, masks
from elder.problems.samples import Sample, measure
from elder.solvers import Status
from elder.solvers.primal_dual import reconstruct_tv
from pipeline.report import tables
from pipeline.report.summary import table
from stages.results import robustness_row, write_results


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


def total_variation(x: Tensor) -> Tensor:
    """Σ ‖(∇x)ᵢ‖₂ of each image."""
    return gradient(x).square().sum(0).sqrt().flatten(1).sum(1)


def energy(fidelity: Fidelity, lambda_reg: float, x: Tensor) -> Tensor:
    return fidelity.value(x) + lambda_reg * total_variation(x)


def square() -> Tensor:
    truth = torch.zeros((1, 1, 16, 18), dtype=torch.float64)
    truth[..., 4:12, 5:14] = 1
    return truth


def data_terms(rng: torch.Generator) -> dict[str, tuple[Fidelity, Tensor]]:
    """Data terms of two images with different operators, and the start of each; A has a null space in most."""
    size = (16, 18)
    truth = torch.cat([square(), torch.rand((1, 1, *size), generator=rng, dtype=torch.float64)])
    mask = torch.stack([masks.radial(size, share, rng) for share in (0.3, 0.5)]).unsqueeze(1).double()
    pixels = Masking((torch.rand((2, 1, *size), generator=rng) > 0.5).double())
    operators = {
        "denoise": Identity(),
        "csmri": MaskedFourier(mask),
        "superres": Blur.of(kernels.gaussian(5, 1.0).double(), size, 2),
        "noisy inpaint": pixels,
    }
    found = {name: LeastSquares.of(operator, operator.A(truth)) for name, operator in operators.items()}
    return {
        **{name: (fidelity, fidelity.operator.AT(fidelity.y)) for name, fidelity in found.items()},
        "inpaint": (HardConstraint.of(pixels, pixels.A(truth)), pixels.A(truth)),
    }


TERMS = ("denoise", "csmri", "superres", "noisy inpaint", "inpaint")


def test_denoising_a_step_lowers_its_edge_by_the_closed_form():
    """Of a step from 0 on k columns to 1 on n − k, the levels move by λ/k and λ/(n − k)."""
    y = torch.zeros((1, 1, 5, 10), dtype=torch.float64)
    y[..., 4:] = 1
    s = reconstruct_tv(LeastSquares.of(Identity(), y), y, 0.3, tol=1e-8)
    expected = torch.where(y > 0, 1 - 0.3 / 6, 0.3 / 4).double()
    assert s.status == (Status.CONVERGED,)
    torch.testing.assert_close(s.x, expected, rtol=0, atol=1e-4)
    # ½ · 5 · (4 (λ/4)² + 6 (λ/6)²) + λ · 5 · (1 − λ/4 − λ/6)
    assert float(s.energy) == pytest.approx(2.5 * 0.3**2 * (1 / 4 + 1 / 6) + 1.5 * (1 - 0.125), rel=1e-7)


@pytest.mark.parametrize("weight", [0.2, 0.7])
def test_two_pixels_meet_where_the_weight_is_large(weight):
    y = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 1, 1, 2)
    s = reconstruct_tv(LeastSquares.of(Identity(), y), y, weight, tol=1e-10, max_steps=5000)
    moved = min(weight, 0.5)
    torch.testing.assert_close(s.x.flatten(), torch.tensor([moved, 1 - moved], dtype=torch.float64), rtol=0, atol=1e-5)


def test_a_constant_and_a_black_picture_stay_as_they_are():
    for dtype, level in ((torch.float64, 0.5), (torch.float32, 0.3), (torch.float32, 0.0)):
        y = torch.full((1, 1, 9, 8), level, dtype=dtype)
        operator = MaskedFourier(masks.radial((9, 8), 0.5, torch.Generator().manual_seed(0)).to(dtype))
        # Of half of the coefficients in float64, rounding alone is left before the gap is certified.
        ends = (Status.CONVERGED, Status.PRECISION if dtype == torch.float64 else Status.CONVERGED)
        data_terms = (LeastSquares.of(Identity(), y), LeastSquares.of(operator, operator.A(y)))
        for data_term, end in zip(data_terms, ends, strict=True):
            s = reconstruct_tv(data_term, torch.zeros_like(y), 0.1)
            assert list(s.status) == [end]
            torch.testing.assert_close(s.x, y, rtol=0, atol=1e-5)


def test_between_two_known_pixels_the_energy_is_their_difference():
    mask = torch.tensor([1.0, 0, 0, 0, 0, 1], dtype=torch.float64).view(1, 1, 1, 6)
    y = mask * torch.tensor([0.2, 0, 0, 0, 0, 0.9], dtype=torch.float64)
    s = reconstruct_tv(HardConstraint.of(Masking(mask), y), y, 0.1, tol=1e-9, max_steps=5000)
    assert s.status == (Status.CONVERGED,)
    assert float(s.energy) == pytest.approx(0.1 * 0.7, rel=1e-8)
    assert s.x.flatten()[[0, 5]].tolist() == [0.2, 0.9]


@pytest.mark.parametrize("name", TERMS)
def test_the_gap_bounds_how_much_lower_the_energy_of_any_picture_is(name, rng):
    fidelity, start = data_terms(rng)[name]
    low = reconstruct_tv(fidelity, start, 0.02, tol=1e-12, max_steps=1500)
    gaps = []
    for steps in (10, 40, 160, 640):
        s = reconstruct_tv(fidelity, start, 0.02, tol=1e-12, max_steps=steps)
        torch.testing.assert_close(s.energy, energy(fidelity, 0.02, s.x))
        for z in (low.x, start):
            # The share of the way to z that lies in the box of the certificate.
            share = (s.x.abs().amax((1, 2, 3)) / (z - s.x).abs().amax((1, 2, 3)).clamp(min=1e-9)).clamp(max=1)
            assert bool((s.energy - energy(fidelity, 0.02, z) <= s.gap / share).all())
        gaps.append(s.gap)
    assert bool((gaps[-1] < 0.02 * gaps[0]).all())
    assert bool((low.gap < 1e-3 * low.energy).all())


@pytest.mark.parametrize("name", TERMS)
def test_a_batch_gives_the_results_of_its_images(name, rng):
    fidelity, start = data_terms(rng)[name]
    together = reconstruct_tv(fidelity, start, 0.02)
    assert len(set(together.steps.tolist())) == 2
    for i in range(2):
        alone = reconstruct_tv(fidelity.select(torch.tensor([i])), start[[i]], 0.02)
        assert alone.status[0] is together.status[i]
        assert int(alone.steps) == int(together.steps[i])
        torch.testing.assert_close(alone.x, together.x[[i]], rtol=0, atol=1e-9)
        torch.testing.assert_close(alone.gap, together.gap[[i]], rtol=1e-6, atol=0)


def test_running_out_of_steps_is_said(rng):
    fidelity, start = data_terms(rng)["csmri"]
    s = reconstruct_tv(fidelity, start, 0.02, max_steps=7)
    assert s.status == (Status.MAX_STEPS,) * 2
    assert s.steps.tolist() == [7, 7]
    assert bool((s.gap > 1e-3 * s.energy).all())


def test_float32_stops_at_its_precision_and_says_so(rng):
    both, start = data_terms(rng)["csmri"]
    fidelity = both.select(torch.tensor([1]))
    assert isinstance(fidelity, LeastSquares)
    assert isinstance(fidelity.operator, MaskedFourier)
    rough = LeastSquares.of(MaskedFourier(fidelity.operator.mask.float()), fidelity.y.to(torch.complex64))
    s = reconstruct_tv(rough, start[1:].float(), 0.01, tol=1e-6)
    assert s.status == (Status.PRECISION,)
    fine = reconstruct_tv(fidelity, start[1:], 0.01, tol=1e-6)
    assert fine.status == (Status.CONVERGED,)
    torch.testing.assert_close(s.x.double(), fine.x, rtol=0, atol=1e-4)


def test_a_start_that_is_not_finite_is_said(rng):
    fidelity, start = data_terms(rng)["denoise"]
    start[1] = math.nan
    s = reconstruct_tv(fidelity, start, 0.02)
    assert s.status == (Status.CONVERGED, Status.NOT_FINITE)


def test_scaling_the_measurement_scales_the_picture(rng):
    fidelity, start = data_terms(rng)["superres"]
    assert isinstance(fidelity, LeastSquares)
    expected = reconstruct_tv(fidelity, start, 0.02)
    for factor in (1e-3, 1e4):
        scaled = LeastSquares.of(fidelity.operator, factor * fidelity.y)
        s = reconstruct_tv(scaled, factor * start, factor * 0.02)
        assert s.steps.tolist() == expected.steps.tolist()
        torch.testing.assert_close(s.x / factor, expected.x, rtol=0, atol=1e-8)


def test_under_a_hard_constraint_the_weight_has_no_effect(rng):
    fidelity, start = data_terms(rng)["inpaint"]
    a, b = (reconstruct_tv(fidelity, start, weight) for weight in (1e-4, 1.0))
    torch.testing.assert_close(a.x, b.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("argument", [{"lambda_reg": 0.0}, {"tol": 0.0}, {"max_steps": 0}, {"tol": math.nan}])
def test_bad_arguments_name_themselves(argument, rng):
    fidelity, start = data_terms(rng)["denoise"]
    with pytest.raises(ValueError, match=rf"reconstruct_tv\({next(iter(argument))}="):
        reconstruct_tv(fidelity, start, **{"lambda_reg": 0.1, **argument})


def test_denoising_reaches_the_energy_of_scikit_image(rng):
    y = torch.rand((1, 1, 24, 20), generator=rng, dtype=torch.float64)
    fidelity, weight = LeastSquares.of(Identity(), y), 0.2

    def energy(x: torch.Tensor) -> float:
        return float(fidelity.value(x) + weight * total_variation(x))

    x = reconstruct_tv(fidelity, y, weight, tol=1e-9, max_steps=5000).x
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

    x = reconstruct_tv(fidelity, operator.AT(fidelity.y), weight, tol=1e-10, max_steps=20000).x
    for _ in range(20):
        assert energy(x + 1e-3 * cases.randn(x.shape, rng)) > energy(x) - 1e-7
    assert energy(x) < energy(operator.AT(fidelity.y))
    assert energy(x) < energy(truth)


def test_psnr_of_an_exact_reconstruction_is_that_of_rounding():
    black = torch.zeros((2, 1, 9, 8))
    assert psnr(black, black).tolist() == pytest.approx([20 * math.log10(2**24)] * 2)
    assert float(psnr(black[:1] + 1e-3, black[:1])) == pytest.approx(60, abs=1e-4)


def test_a_picture_that_is_not_finite_is_the_worst_and_not_the_best():
    truth = torch.full((1, 1, 9, 8), 0.25)
    broken = torch.full_like(truth, math.nan)
    assert float(psnr(broken, truth)) == pytest.approx(-20 * math.log10(0.75))
    assert math.isfinite(float(ssim(broken, truth)))
    assert float(psnr(torch.full_like(truth, math.inf), truth)) == pytest.approx(-20 * math.log10(0.75))


def test_the_misfit_is_relative_and_of_each_image(rng):
    operator = MaskedFourier(masks.radial((9, 8), 0.5, rng).double())
    x = torch.rand((2, 1, 9, 8), generator=rng, dtype=torch.float64)
    y = operator.A(x)
    torch.testing.assert_close(
        relative_misfit(operator, torch.cat([x[:1], 3 * x[1:]]), y), torch.tensor([0.0, 2.0], dtype=torch.float64)
    )
    black = relative_misfit(Identity(), torch.tensor([[[[3.0, 4.0]]], [[[0.0, 0.0]]]]), torch.zeros((2, 1, 1, 2)))
    assert black.tolist() == [5, 0]


def results(
    levels: list[float], status: Status | None = Status.CONVERGED, guesses: list[float] | None = None
) -> list[Result]:
    """Black pictures reconstructed to gray levels, from guesses of 0.1: PSNR is −20 log₁₀ of the level."""
    truth = torch.zeros((1, 1, 12, 11))
    return [
        Result(Sample(f"a{i}", truth, Identity(), truth + guess), truth + guess, truth + level, 3, status, None, 0.5)
        for i, (level, guess) in enumerate(zip(levels, guesses or [0.1] * len(levels), strict=True))
    ]


@pytest.mark.parametrize("spoiled", [0.0, 6e-8, 1e-6, 0.01])
def test_an_image_whose_guess_is_exact_is_left_out_of_the_mean_of_every_method(spoiled):
    """Whatever the method makes of it: all methods are judged by the same images."""
    group = results([0.1, spoiled, 0.01], guesses=[0.1, 1e-7, 0.1])
    average = mean(group)
    assert average["psnr"] == pytest.approx(30, abs=1e-4)
    assert average["exact"] == 1
    assert average["steps"] == 3
    assert mean_guess(group) == pytest.approx(20, abs=1e-4)
    assert deviation(group)["psnr"] == pytest.approx(math.sqrt(200), abs=1e-4)


def test_an_exact_reconstruction_of_a_hard_measurement_counts():
    average = mean(results([0.0, 0.1]))
    assert average["psnr"] == pytest.approx((BOUND + 20) / 2, abs=1e-4)
    assert "exact" not in average


def test_images_whose_guesses_are_all_exact_have_a_mean():
    assert mean(results([0.0, 0.0], guesses=[0.0, 0.0])) | {"ssim": 1} == {
        "psnr": pytest.approx(BOUND), "ssim": 1, "steps": 3, "seconds": 0.5, "exact": 2,
    }  # fmt: skip


def test_the_share_of_solves_that_converged():
    assert succeeded(results([0.1]) + results([0.1], Status.PRECISION) + results([0.1] * 2, Status.MAX_STEPS)) == 0.5
    assert succeeded(results([0.1], None)) is None


def strict(path) -> dict:
    """A JSON file by the letter: NaN and Infinity are no JSON."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_the_baselines_of_black_pictures_are_numbers(tmp_path):
    problem = problems.make("csmri", {"ratio": 0.4})
    black = measure(problem, ["a", "b"], [torch.zeros(1, 1, 20, 18)] * 2)
    lines: list[str] = []
    assert baselines.tune_tv(problem, black, [0.1, 0.001, 0.01], lines.append) == 0.01
    assert lines == ["total variation: every λ gives 144.49 dB on validation; λ = 0.01"]
    group = baselines.evaluate_tv(problem, black, 0.01)
    write_results({"initial": baselines.evaluate_initial(problem, black), "total_variation": group}, tmp_path)
    shown = strict(tmp_path / "metrics.json")["total_variation"]
    assert shown["psnr"] == pytest.approx(BOUND, abs=1e-3)
    assert (shown["psnr_sd"], shown["converged"], shown["gap"], shown["exact"]) == (0, 1, 0, 2)
    with (tmp_path / "images.csv").open() as file:
        assert all(math.isfinite(float(row["psnr"])) for row in csv.DictReader(file))


def test_one_black_picture_does_not_choose_the_weight(rng):
    """Whatever is exact at every λ counts for none."""
    problem = problems.make("denoise", {"noise": 0.1})
    (noisy,) = measure(problem, ["a"], [square().float()])
    zero = torch.zeros_like(noisy.y)
    black = Sample("b", zero, noisy.operator, zero)
    candidates = [0.003, 0.03, 0.1, 1.0]
    assert baselines.tune_tv(problem, [noisy, black], candidates) == baselines.tune_tv(problem, [noisy], candidates)


def test_evaluating_black_pictures_writes_valid_json(bundle, tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        io.write_image(tmp_path / "images" / f"{name}.png", np.zeros((20, 18)))
    arguments = ["evaluate", str(bundle), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    report = strict(tmp_path / "out" / "metrics.json")
    assert report["baseline"]["psnr"] == pytest.approx(BOUND)
    assert all(image["misfit"] < 1 for image in report["images"])


def test_the_pictures_of_a_whole_split_are_never_in_memory(tmp_path):
    living: weakref.WeakSet[Result] = weakref.WeakSet()

    def one_by_one() -> Iterator[Result]:
        for level in (0.1, 0.2, 0.3, 0.4):
            (result,) = results([level])
            living.add(result)
            assert len(living) <= 2
            yield result

    scores = write_results({"initial": one_by_one()}, tmp_path)
    assert len(scores["initial"]) == 4
    row = robustness_row("initial", {"noise": 0.1}, one_by_one())
    assert row["psnr"] == pytest.approx(mean(scores["initial"])["psnr"])
    assert not living


def test_a_failed_solve_is_written_as_missing(tmp_path):
    (good,) = results([0.1])
    broken = replace(good, x=torch.full_like(good.x, math.nan), status=Status.NOT_FINITE)
    write_results({"initial": [good, broken]}, tmp_path)
    assert strict(tmp_path / "metrics.json")["initial"]["converged"] == 0.5
    with (tmp_path / "images.csv").open() as file:
        first, second = csv.DictReader(file)
    assert float(first["misfit"]) == pytest.approx(0, abs=1e-6)
    assert second["misfit"] == ""
    assert float(second["psnr"]) == 0
    assert robustness_row("m", {"noise": 0.1}, [good, broken])["misfit"] is None


def test_json_holds_no_infinity_and_the_error_names_the_field(tmp_path):
    with pytest.raises(ValueError, match=r"images\.1\.psnr is inf"):
        io.write_json(tmp_path / "a.json", {"images": [{"psnr": 1.0}, {"psnr": math.inf}]})
    assert not list(tmp_path.iterdir())
    io.write_csv(tmp_path / "a.csv", [{"a": math.nan, "b": 1.5}, {"a": 2.0, "b": -math.inf}])
    assert (tmp_path / "a.csv").read_text() == "a,b\n,1.5\n2.0,\n"


def test_the_search_widens_a_grid_that_ends_too_early():
    problem = problems.make("denoise", {"noise": 0.1})
    samples = measure(problem, ["a"], [square().float()])
    wide = baselines.tune_tv(problem, samples, [0.01, 0.03, 0.1, 0.3, 1.0])
    for grid in ([1e-3, 3e-3], [1.5, 0.5], [0.004]):
        lines: list[str] = []
        found = baselines.tune_tv(problem, samples, grid, lines.append)
        assert found == pytest.approx(wide, rel=1.0)
        assert len(lines) == 1
        assert "at the edge of the grid, which was widened to" in lines[0]
        assert "beyond" not in lines[0]
    lines = []
    found = baselines.tune_tv(problem, samples, [2e-3, 2.5e-3], lines.append)
    assert found == pytest.approx(2.5e-3 * 1.25**4)
    assert lines[0].endswith("0.002 ... 0.00610352; the best may lie beyond")


def test_the_search_needs_no_grid_under_a_hard_constraint(monkeypatch):
    problem = problems.make("inpaint", {"missing": 0.5})
    samples = measure(problem, ["a"], [square().float()])
    monkeypatch.setattr(baselines, "evaluate_tv", None)
    assert baselines.tune_tv(problem, samples, [0.1, 0.001, 0.01]) == 0.01


def test_a_failed_solve_never_wins_the_search(monkeypatch):
    """A λ without a finite picture, or whose prox does not converge, loses to every λ that works."""

    def fails(problem, samples, lambda_reg, *, tol):
        if lambda_reg > 0.05:
            raise ArithmeticError("conjugate gradients left a residual")
        (group,) = results([0.1])
        broken = lambda_reg < 0.005
        x = torch.full_like(group.x, math.nan) if broken else group.x
        return [replace(group, x=x, status=Status.NOT_FINITE if broken else Status.CONVERGED)]

    problem = problems.make("denoise", {})
    samples = measure(problem, ["a"], [square().float()])
    monkeypatch.setattr(baselines, "evaluate_tv", fails)
    assert baselines.tune_tv(problem, samples, [0.001, 0.01, 0.1]) == pytest.approx(math.sqrt(0.01 * 0.1), rel=1)
    with pytest.raises(ArithmeticError, match="for every λ"):
        baselines.tune_tv(problem, samples, [0.1, 0.2])


def test_the_tables_say_what_was_stopped_early(tmp_path):
    baseline, cells = tmp_path / "baselines", tmp_path / "cells"
    write_results({"initial": results([0.1], None), "total_variation": results([0.02] * 2)}, baseline / "csmri",
                  {"total_variation": {"lambda_reg": 0.003}})  # fmt: skip
    early = results([0.03]) + results([0.03], Status.MAX_STEPS)
    write_results({"pretrained": early, "finetuned": results([0.01] * 2)}, cells / "cell")
    for folder, name, group in (
        (baseline / "csmri", "total_variation", results([0.02])),
        (cells / "cell", "pretrained", early),
    ):
        io.write_csv(folder / "robustness.csv", [robustness_row(name, {"ratio": 0.3}, group)])
    rows = tables.methods("csmri", "zero-filled", {"cell": "least_squares"}, cells, baseline)
    assert [row.label for row in rows] == [
        "zero-filled", "total variation, λ = 0.003", "least squares, pre-trained *", "least squares, DEQ",
    ]  # fmt: skip
    assert [row.count for row in rows] == ["", "2 of 2", "1 of 2", "2 of 2"]
    printed = "\n".join(table(rows))
    assert "least squares, pre-trained *" in printed
    assert "* solves were stopped before they converged" in printed
    assert "*" not in "\n".join(table(rows[:2]))
    elsewhere = tables.robustness({"cell": "least_squares"}, baseline / "csmri", cells)
    assert [(row["change"], row["method"], row["converged"]) for row in elsewhere] == [
        ("ratio 0.3", "total variation", "100%"),
        ("ratio 0.3", "least squares, pre-trained", "50%"),
    ]
    # The truth is black, y is 0.1 and the picture 0.03.
    assert elsewhere[1]["PSNR (dB)"] == f"{-20 * math.log10(0.03):.2f}"
    assert elsewhere[1]["of the initial guess (dB)"] == "20.00"
    assert elsewhere[1]["data misfit"] == "0.7000"
