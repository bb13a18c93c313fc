"""Computed tomography: ray sums, geometry, symmetries, filtered back-projection, and what they cost."""

from __future__ import annotations

import math
import re
import types
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from skimage.data import shepp_logan_phantom
from skimage.transform import iradon, radon, resize
from torch import Tensor

from elder import UserError, problems
from elder.operators import Operator, Radon
from elder.operators.strips import shared_area
from elder.operators.views import VIEWS, Views
from elder.problems import samples
from elder.problems.ct import directions, filtered_back_projection
from elder.problems.samples import measure
from elder.testing import check_operator

FULL = Views(mirrored=True, transposed=True, turned=True)


def disc(size: tuple[int, int], radius: float, center: tuple[float, float] = (0.0, 0.0), fine: int = 16) -> Tensor:
    """The area of each pixel within a disc, (1, 1, h, w) in float64; center: (x, y) from the middle of the picture."""
    y, x = (torch.arange(n * fine, dtype=torch.float64).add(0.5) / fine - n / 2 for n in size)
    inside = (x - center[0]).square() + (y - center[1]).square().unsqueeze(1) <= radius**2
    return torch.nn.functional.avg_pool2d(inside.double()[None, None], fine)


def degrees(*theta: float) -> Tensor:
    return torch.tensor(theta, dtype=torch.float64).deg2rad()


def equidistant(n: int, arc: float = 180.0) -> Tensor:
    return degrees(*(arc * k / n for k in range(n)))


def rows(operator: Radon) -> Tensor:
    """The matrix of the operator times √(angles · detectors), (angles, detectors, h, w)."""
    h, w = operator.size
    pictures = torch.eye(h * w, dtype=torch.float64).view(h * w, 1, h, w)
    found = operator.A(pictures).view(h, w, operator.angles, operator.detectors).permute(2, 3, 0, 1)
    return found * math.sqrt(operator.angles * operator.detectors)


def within(n: int) -> np.ndarray:
    """The circle that scikit-image projects and reconstructs."""
    return np.hypot(*(np.mgrid[:n, :n] - n // 2)) <= n // 2 - 1


def phantom(n: int) -> np.ndarray:
    return resize(shepp_logan_phantom(), (n, n)) * within(n)


class TestRaySums:
    def test_of_a_disc_at_every_degree(self):
        radius, center = 24.0, (3.3, -2.2)
        operator = Radon.of(degrees(*range(180)), (64, 72), torch.float64)
        y = operator.A(disc((64, 72), radius, center))[0, 0] * math.sqrt(180 * operator.detectors)
        s = torch.arange(operator.detectors) - (operator.detectors - 1) / 2
        middle = center[0] * operator.theta.cos() + center[1] * operator.theta.sin()
        distance = s - middle.unsqueeze(1)
        well_inside = distance.abs() <= 0.8 * radius
        chord = 2 * (radius**2 - distance[well_inside].square()).sqrt()
        assert float((y[well_inside] / chord - 1).abs().max()) < 0.01

    def test_shared_areas_are_those_of_a_fine_grid(self):
        fine = (torch.arange(400, dtype=torch.float64) + 0.5) / 400 - 0.5
        for theta in degrees(0, 10, 45, 80, 135).tolist():
            s = fine * math.cos(theta) + fine.view(-1, 1) * math.sin(theta)
            for distance in (0.0, 0.3, 0.7, -1.1, 1.3):
                counted = float(((s - distance).abs() <= 0.5).double().mean())
                assert float(shared_area(torch.tensor(distance).double(), theta)) == pytest.approx(counted, abs=5e-3)

    def test_the_strips_of_an_angle_share_out_every_pixel(self):
        shares = rows(Radon.of(equidistant(7), (9, 12), torch.float64)).sum(1)
        torch.testing.assert_close(shares, torch.ones_like(shares))

    def test_the_ray_of_a_detector_is_where_it_is_documented(self):
        """A single pixel at (x, y) = (3, −2): at 90° the detectors lie along y, and an offset moves them."""
        x = torch.zeros(1, 1, 9, 11, dtype=torch.float64)
        x[0, 0, 2, 8] = 1
        for offset in (0.0, 2.0, -1.0):
            operator = Radon.of(degrees(0, 90), (9, 11), torch.float64, detectors=15, offset=offset)
            y = operator.A(x)[0, 0] * math.sqrt(2 * 15)
            assert y[0].tolist() == pytest.approx([float(j - 7 - offset == 3) for j in range(15)])
            assert y[1].tolist() == pytest.approx([float(j - 7 - offset == -2) for j in range(15)])


GEOMETRIES = {
    "equidistant, square": (equidistant(24), (12, 12), {}, FULL),
    "45 and 90 degrees among them": (equidistant(32), (11, 11), {}, FULL),
    "not square": (equidistant(24), (9, 12), {}, replace(FULL, transposed=False)),
    "a number of angles that 2 does not divide": (equidistant(23), (10, 10), {}, replace(FULL, transposed=False)),
    "half a detector aside": (equidistant(24), (12, 12), {"offset": 0.5, "detectors": 21}, FULL),
    "aside by any amount": (equidistant(24), (12, 12), {"offset": 0.3}, replace(FULL, turned=False)),
    "few detectors": (equidistant(24), (12, 12), {"detectors": 8}, FULL),
    "limited angle": (equidistant(20, 100), (10, 10), {}, Views(False, False, True)),
    "a full turn": (equidistant(24, 360), (10, 10), {"offset": 0.25}, None),
    "no symmetry at all": (degrees(1, 20, 33, 34, 200), (8, 11), {"offset": 0.2}, Views(False, False, False)),
}


@pytest.mark.parametrize("name", GEOMETRIES)
class TestGeometries:
    def test_laws(self, name, rng):
        theta, size, options, _ = GEOMETRIES[name]
        x = torch.rand((2, 2, *size), generator=rng, dtype=torch.float64)
        check_operator(Radon.of(theta, size, torch.float64, **options), x)

    def test_symmetries_change_the_cost_and_not_the_result(self, name):
        """Angles without symmetry beside the given ones leave the picture alone as the only view."""
        theta, size, options, views = GEOMETRIES[name]
        operator = Radon.of(theta, size, torch.float64, **options)
        assert views is None or operator.views == views
        options = {"detectors": operator.detectors, "offset": operator.offset + 1e-6}
        beside = theta + torch.linspace(0.001, 0.01, len(theta), dtype=torch.float64)
        plain = Radon.of(torch.cat([theta, beside]), size, torch.float64, **options)
        assert plain.views == VIEWS[-1]
        torch.testing.assert_close(rows(operator), rows(plain)[: len(theta)], rtol=0, atol=1e-5)

    def test_a_measurement_comes_back_from_disk(self, name, tmp_path, rng):
        theta, size, options, _ = GEOMETRIES[name]
        problem, x = problems.make("ct"), torch.rand((1, 1, *size), generator=rng)
        operator = Radon.of(theta, size, **options)
        samples.save(tmp_path / "a.npz", problem, samples.Sample("a", x, operator, operator.A(x)))
        again = samples.read(tmp_path / "a.npz", problem, x)
        torch.testing.assert_close(again.operator.A(x), again.y)


class TestSettings:
    def test_geometry_of_a_simulation(self, rng):
        settings = {"angles": 10, "arc": 90.0, "detectors": 31, "offset": -1.5}
        operator, y = problems.make("ct", settings).simulate(torch.rand(1, 1, 20, 24), rng)
        assert y.shape == (1, 1, 10, 31)
        assert operator.theta.rad2deg().tolist() == pytest.approx(list(range(0, 90, 9)))
        assert operator.offset == -1.5

    def test_a_sinogram_alone_is_of_the_largest_square_that_its_detectors_see(self, rng):
        problem = problems.make("ct", {"arc": 120.0, "offset": 0.5})
        operator = problem.bind(torch.zeros(1, 1, 30, 74))
        assert operator.size == (51, 51)
        assert operator.theta.rad2deg().tolist() == pytest.approx(list(range(0, 120, 4)))
        assert operator.offset == 0.5

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"angles": 0}, "angles=0"),
            ({"arc": 0.0}, "arc=0.0"),
            ({"arc": 400}, "arc=400.0"),
            ({"detectors": -3}, "detectors=-3"),
            ({"offset": float("nan")}, "offset=nan"),
        ],
    )
    def test_bad_settings_name_themselves(self, settings, message):
        with pytest.raises(UserError, match=message):
            problems.make("ct", settings)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"theta": np.arange(7.0)}, "theta holds 7 angles for 8 rows"),
            ({"theta": np.full(8, np.nan)}, "must hold a finite one"),
            ({"size": [10]}, "size="),
            ({"size": [10, 0]}, "size="),
            ({"theta": np.zeros(4, complex)}, "theta must hold real numbers"),
            ({"size": np.array([12, 12j])}, "size must hold real numbers"),
            ({"offset": 40.0}, "none of the rays meets the picture"),
            ({"offset": np.array(np.inf)}, "offset=inf"),
        ],
    )
    def test_bad_arguments_name_themselves(self, arguments, message):
        with pytest.raises(UserError, match=message):
            problems.make("ct").bind(torch.zeros(1, 1, 8, 15), **arguments)


class TestFilteredBackProjection:
    def test_does_not_depend_on_what_divides_the_number_of_angles(self):
        """Inside of the circle that scikit-image reconstructs, where 59, 60 and 61 angles are few."""
        x = phantom(128)

        def psnr(found: np.ndarray) -> float:
            return -10 * math.log10(np.square(found - x)[within(128)].mean())

        figures = []
        for angles in (59, 60, 61):
            problem, theta = problems.make("ct", {"angles": angles}), np.arange(angles) * 180 / angles
            operator, y = problem.simulate(torch.from_numpy(x).float()[None, None], torch.Generator())
            figures.append(psnr(problem.initial(operator, y)[0, 0].numpy()))
            figures.append(psnr(iradon(radon(x, theta), theta)))
        assert max(figures) - min(figures) < 0.5
        assert min(figures) > 27

    @pytest.mark.parametrize(
        ("theta", "options"),
        [
            (equidistant(90), {}),
            (equidistant(180, 360), {"offset": 0.25}),
            (equidistant(90), {"offset": 3.5, "detectors": 63}),
            (torch.cat([equidistant(60), equidistant(60)[:20]]), {}),
            (torch.arange(120) * math.pi * (math.sqrt(5) - 1) / 2, {}),
        ],
        ids=["half a turn", "a full turn", "offset detectors", "some angles twice", "golden angle"],
    )
    def test_has_the_amplitude_of_the_picture(self, theta, options):
        x = disc((41, 41), 13.0)
        operator = Radon.of(theta, (41, 41), torch.float64, **options)
        found = filtered_back_projection(operator, operator.A(x))[disc((41, 41), 10.0) == 1]
        assert float(found.mean()) == pytest.approx(1, abs=0.005)
        assert float(found.std()) < 0.02

    def test_directions_add_up_to_the_range_that_was_measured(self):
        assert directions(equidistant(60)).tolist() == pytest.approx([math.pi / 60] * 60)
        assert directions(equidistant(60, 360)).tolist() == pytest.approx([math.pi / 60] * 60)
        assert directions(equidistant(60, 90)).tolist() == pytest.approx([math.pi / 120] * 60)
        assert directions(degrees(10)).tolist() == pytest.approx([math.pi])
        assert directions(degrees(120, 0, 60, 180)).rad2deg().tolist() == pytest.approx([60, 30, 60, 30])


@pytest.fixture(scope="module")
def documented():
    """The example of docs/ct.md, which converts a sinogram of scikit-image."""
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "ct.md").read_text(), re.DOTALL)
    module = types.ModuleType("documented")
    exec(compile(source, "docs/ct.md", "exec"), vars(module))  # noqa: S102  our own documentation
    return module


class TestASinogramOfScikitImage:
    @pytest.mark.parametrize("circle", [True, False])
    @pytest.mark.parametrize("n", [64, 65])
    def test_is_what_the_operator_makes_of_the_picture(self, n, circle, documented):
        x, theta = phantom(n), np.arange(0, 180, 4.5)
        y, arguments = documented.from_skimage(radon(x, theta, circle=circle), theta, n)
        measured = torch.from_numpy(y).float()[None, None]
        operator = problems.make("ct").bind(measured, **arguments)
        picture = torch.zeros(1, 1, *operator.size)
        picture[0, 0, :n, :n] = torch.from_numpy(x)
        # scikit-image interpolates where this operator integrates.
        assert float((operator.A(picture) - measured).norm() / measured.norm()) < 0.01
        moved = problems.make("ct").bind(measured, **{**arguments, "offset": arguments["offset"] + 0.5})
        assert float((moved.A(picture) - measured).norm() / measured.norm()) > 0.02

    def test_is_reconstructed(self, documented, small_model):
        model = replace(small_model, problem=problems.make("ct"))
        x, _ = model.reconstruct(documented.y, **documented.arguments)
        assert x.shape == (65, 65)
        assert np.abs(x[:64, :64] - documented.picture).max() < 0.1


class TestCost:
    def test_the_matrix_is_small_where_there_are_symmetries(self):
        """A pixel shares its area with 2.3 strips on average. An entry takes 8 bytes, in A and in Aᵀ."""
        size, angles = 64, 60

        def entries(theta: Tensor, **options: Any) -> float:
            operator = Radon.of(theta, (size, size), **options)
            assert operator.matrix.col_indices().dtype == operator.transpose.col_indices().dtype == torch.int32
            assert operator.matrix.values().numel() == operator.transpose.values().numel()
            return operator.matrix.values().numel() / (size**2 * angles)

        assert entries(equidistant(angles)) < 2.4 / 7
        assert entries(equidistant(angles), offset=0.3) < 2.4 / 3.5
        assert entries(equidistant(angles - 1)) < 2.4 / 3.5
        assert entries(degrees(*torch.linspace(0, 150, angles).tolist())) < 2.4 / 1.9

    @pytest.mark.parametrize(("step", "most"), [(1.0, 5), (100.0, 12)])
    def test_a_proximal_step_takes_few_projections(self, step, most, monkeypatch):
        x = torch.from_numpy(phantom(96)).float()[None, None]
        operator, y = problems.make("ct", {"angles": 45, "noise": 0.003}).simulate(x, torch.Generator().manual_seed(0))
        tau, calls = torch.full((1, 1, 1, 1), step), []
        v = operator.AT(y) * step + x
        monkeypatch.setattr(Radon, "normal", lambda self, z: calls.append(1) or Operator.normal(self, z))
        found = operator.prox_solve(v, tau)
        assert len(calls) <= most
        calls.clear()
        plain = Operator.prox_solve(operator, v, tau)
        assert len(calls) > most
        assert float((found - plain).norm() / plain.norm()) < 1e-4

    def test_results_do_not_depend_on_what_was_computed_before(self, rng):
        x = torch.rand((2, 1, 20, 20), generator=rng)
        problem = problems.make("ct", {"angles": 12})
        (m, _), step = measure(problem, ["a", "b"], list(x.unsqueeze(1))), torch.tensor(20.0)
        fidelity = problem.fidelity(m.operator, m.y)
        first = fidelity.prox(x[:1], step)
        fidelity.prox(x[1:], step)
        assert torch.equal(fidelity.prox(x[:1], step), first)
