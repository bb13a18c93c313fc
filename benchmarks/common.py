"""What the benchmarks share: two networks trained for a few minutes, real pictures, paired timings and their table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import skimage
import torch
from torch import Tensor

from elder import io, problems, regularizers
from elder.io import to_tensor
from elder.model import bundle
from elder.model.model import Hyperparameters, Model
from elder.problems.samples import Sample, measure
from elder.regularizers import LeastSquaresResidual
from elder.training.patches import Patches
from elder.training.pretrain import Pretraining, pretrain

NETWORKS = {
    "DnCNN 64x12": {"name": "dncnn", "width": 64, "depth": 12},
    "DRUNet 32-64-128-256": {"name": "drunet", "widths": (32, 64, 128, 256), "blocks": 2},
}
CACHE = Path(__file__).parent / ".cache"
RESULTS = Path(__file__).parent / "results.json"
TRAINING = (
    "motorcycle_left.png",
    "ihc.png",
    "brick.png",
    "grass.png",
    "moon.png",
    "gravel.png",
    "hubble_deep_field.jpg",
)
TEST = ("camera.png", "coffee.png", "chelsea.png", "astronaut.png")
# λ and σ near what tuning on validation gives either network: on CS-MRI without noise, and on super-resolution with it.
CLEAN, NOISY = (1 / 300, 0.08), (1 / 100, 0.06)

# Tolerances of a linear solve, from loose to tight, so fine that the first which is good enough wastes little.
TOLERANCES = [10 ** (-k / 5) for k in range(3, 21)]


@dataclass(frozen=True)
class Row:
    """One figure, with the range of the runs behind it; the target is what it must not exceed, where there is one."""

    benchmark: str
    case: str
    figure: float
    unit: str
    low: float
    high: float
    target: float | None = None

    @property
    def missed(self) -> bool:
        """Whether the figure exceeds its target."""
        return self.target is not None and not self.figure <= self.target

    def __str__(self) -> str:
        spread = f"  ({self.low:.4g} to {self.high:.4g})" if self.low != self.high else ""
        verdict = "MISSED" if self.missed else "ok"
        aim = "" if self.target is None else f"  {verdict}: at most {self.target:.3g}"
        return f"{self.case:<62} {self.figure:7.4g} {self.unit}{spread}{aim}"


def counted(benchmark: str, case: str, figure: float, unit: str, target: float | None = None) -> Row:
    """A figure that is counted, not timed: it has no spread."""
    return Row(benchmark, case, figure, unit, figure, figure, target)


def compared(
    benchmark: str,
    problems: Mapping[str, tuple[str, dict[str, Any], tuple[int, int]]],
    count: Callable[[Model, Sample], dict[str, int]],
    reference: str,
    pictures: int,
    unit: str,
    target: float,
    best: str | None = None,
) -> Iterator[Row]:
    """What each method takes, counted: the mean over pictures, and that of the best method over the reference's.

    Args:
        problems: the problem, its settings and the size of the pictures, by the name of the case.
        count: the count of each method by its name, on one measurement.
        reference: the name of the method that the others are compared with.
        target: what the share of the best method is to be at most.
        best: its name; if `None`, it is the one that takes least in the mean.
    """
    for label, (problem, settings, size) in problems.items():
        for title in NETWORKS:
            chosen = model(title, problem, **settings)
            counts = [count(chosen, m) for m in measured(chosen, size)[:pictures]]
            found = {name: [each[name] for each in counts] for name in counts[0]}
            means = {name: statistics.mean(values) for name, values in found.items()}
            case = f"{label}, {title}"
            yield from (counted(benchmark, f"{case}, {name}", mean, unit) for name, mean in means.items())
            least = best or min((name for name in means if name != reference), key=lambda name: means[name])
            shares = [a / b for a, b in zip(found[least], found[reference], strict=True)]
            share = means[least] / means[reference]
            yield Row(benchmark, f"{case}, {least} of {reference}", share, "", min(shares), max(shares), target)


def paired(reference: Callable[[], object], *others: Callable[[], object], runs: int) -> list[list[float]]:
    """For each of `others`, the ratios of its time to that of `reference`, in `runs` rounds in which all take turns."""
    for warm in (reference, *others):
        warm()
    ratios: list[list[float]] = [[] for _ in others]
    for _ in range(runs):
        base = timed(reference)
        for kept, other in zip(ratios, others, strict=True):
            kept.append(timed(other) / base)
    return ratios


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call, until an accelerator has done its work, too."""
    start = time.perf_counter()
    run()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def summarized(benchmark: str, case: str, ratios: Sequence[float], unit: str, target: float | None = None) -> Row:
    """The median of the ratios."""
    return Row(benchmark, case, statistics.median(ratios), unit, min(ratios), max(ratios), target)


def pictures(names: Sequence[str], size: tuple[int, int]) -> list[Tensor]:
    """The middle of photographs inside scikit-image's wheel, gray, (1, 1, h, w)."""
    folder = Path(skimage.__file__).parent / "data"
    found = []
    for name in names:
        x = to_tensor(io.read_image(folder / name)).mean(1, keepdim=True)
        top, left = ((n - m) // 2 for n, m in zip(x.shape[-2:], size, strict=True))
        found.append(x[..., top : top + size[0], left : left + size[1]])
    return found


def trained(title: str) -> LeastSquaresResidual:
    """The least-squares residual over a network of `NETWORKS`, pre-trained once and then kept in `.cache`."""
    folder = CACHE / title.lower().replace(" ", "-")
    if not (folder / "config.json").exists():
        print(f"pre-training {title}, once: some minutes", flush=True)
        torch.manual_seed(0)
        energy = regularizers.make("least_squares", NETWORKS[title])
        patches = Patches(pictures(TRAINING, (256, 256)), 40, TRAINING)
        settings = Pretraining(steps=600, batch=4, patch=40, learning_rate=1e-3)
        pretrain(energy, patches, settings)
        bundle.write(folder, energy, {"regularizer": {"name": "least_squares", "network": NETWORKS[title]}})
    energy, _ = bundle.read(folder)
    assert isinstance(energy, LeastSquaresResidual)
    return energy


def model(title: str, problem: str, **settings: object) -> Model:
    """The trained energy in a problem, with λ, σ and τ as pre-training leaves them."""
    weight, sigma = NOISY if settings.get("noise") else CLEAN
    return Model(problems.make(problem, settings), trained(title), Hyperparameters(weight, sigma, 1 / weight), {})


def measured(chosen: Model, size: tuple[int, int], names: Sequence[str] = TEST):
    """Measurements of the test pictures."""
    return measure(chosen.problem, names, pictures(names, size))


def main(run: Callable[[int], Iterable[Row]], text: str | None, runs: int = 9) -> None:
    """The command of one benchmark: measure, print each row as it comes, and merge all into results.json."""
    record(shown(run(parser(text, runs).parse_args().runs)))


def parser(text: str | None, runs: int) -> argparse.ArgumentParser:
    """The arguments of a benchmark."""
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--runs", type=int, default=runs, help="timed runs of each variant (default: %(default)s)")
    return found


def shown(rows: Iterable[Row]) -> list[Row]:
    """The rows, each printed as it comes."""
    found = []
    for row in rows:
        print(row, flush=True)
        found.append(row)
    return found


def record(rows: Sequence[Row], *, whole: bool = True) -> None:
    """Put the rows into results.json in the place of those of the same benchmark; or, of a part, of the same cases.

    Ends the command with exit code 1 if a row misses its target.
    """
    old = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    fresh = {row.benchmark if whole else (row.benchmark, row.case) for row in rows}
    kept = [row for row in old if (row["benchmark"] if whole else (row["benchmark"], row["case"])) not in fresh]
    io.write_json(RESULTS, {"machine": machine(), "rows": kept + [asdict(row) for row in rows]})
    missed = sum(row.missed for row in rows)
    if missed:
        sys.exit(f"{missed} of {len(rows)} figures miss their target")


def machine() -> dict[str, object]:
    """Where the figures were measured."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
