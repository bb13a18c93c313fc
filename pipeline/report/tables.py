"""The tables of the report: every method on the same measurements, with the significance of what separates them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scipy import stats

from elder import io
from elder.evaluation.quality import judged
from pipeline.settings.params import Cell


@dataclass(frozen=True)
class Method:
    """One row: a method on the test images of a problem."""

    title: str
    phase: str  # baseline, pretrained or finetuned
    regularizer: str  # empty for a baseline
    metrics: dict[str, float]
    rows: list[dict[str, str]]  # one an image, in the same order for every method
    seconds: float  # an image, on the machine of the run
    gain: str = ""  # over the row it is compared with
    long_change: float | None = None  # mean change of PSNR in dB when iterated for evaluate.long_steps

    def column(self, name: str) -> list[float]:
        """A column of images.csv in dB, of the images that means of PSNR are over; empty if the method has none."""
        guesses = [float(row["psnr_initial"]) for row in self.rows]
        values = [row.get(name) or "nan" for row in self.rows]
        return [value for value in judged([float(value) for value in values], guesses) if not math.isnan(value)]

    @property
    def solved(self) -> str:
        """How many solves reached a fixed point, whether the energy fell all the way, and the largest gap, if known."""
        monotone = [row["monotone"] for row in self.rows if row["monotone"]]
        falls = "" if not monotone else ", energy falls" if all(m == "True" for m in monotone) else ", energy rose"
        gap = f", gap {self.metrics['gap']:.1e}" if "gap" in self.metrics else ""
        return f"{self.count}{falls}{gap}"

    @property
    def count(self) -> str:
        """How many solves reached a fixed point, "3 of 4"; empty for the initial guess, which solves nothing."""
        share = self.metrics.get("converged")
        return "" if share is None else f"{round(share * len(self.rows))} of {len(self.rows)}"

    @property
    def stopped_early(self) -> bool:
        """Whether a solve ended before its fixed point, so that the row depends on where solves were cut off."""
        return self.metrics.get("converged", 1.0) < 1

    @property
    def label(self) -> str:
        """The title; λ, if it was searched for; images without a PSNR; an asterisk, if solves were stopped early."""
        chosen = f", λ = {self.metrics['lambda_reg']:g}" if "lambda_reg" in self.metrics else ""
        exact = f", {self.metrics['exact']} exact left out" if 0 < self.metrics.get("exact", 0) < len(self.rows) else ""
        return f"{self.title}{chosen}{exact}{' *' if self.stopped_early else ''}"


def by_problem(cells: Mapping[str, Cell]) -> dict[str, dict[str, str]]:
    """The cells of each problem, {cell: regularizer}, in the order of params.yaml."""
    found: dict[str, dict[str, str]] = {}
    for name, cell in cells.items():
        found.setdefault(cell.problem, {})[name] = cell.regularizer
    return found


def methods(problem: str, initial: str, cells: dict[str, str], reports: Path, baselines: Path) -> list[Method]:
    """The rows of a problem's table: baselines, then each of its cells, {cell: regularizer}, before and after DEQ."""
    names = {"initial": initial, "total_variation": "total variation"}
    found = [_read(baselines / problem, key, name, "baseline", "") for key, name in names.items()]
    for cell, regularizer in cells.items():
        name = regularizer.replace("_", " ")
        before = _read(reports / cell, "pretrained", f"{name}, pre-trained", "pretrained", regularizer)
        after = _read(reports / cell, "finetuned", f"{name}, DEQ", "finetuned", regularizer)
        found += [before, replace(after, gain=compared(after.column("psnr"), before.column("psnr")))]
    return found


def compared(a: Sequence[float], b: Sequence[float]) -> str:
    """The mean of a − b over the same images with its 95 % interval (t) and Wilcoxon's signed-rank p."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = sum(differences) / len(differences)
    if len(differences) < 2 or max(differences) == min(differences):
        return f"{mean:+.2f} dB"
    half = stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
    _, p = stats.wilcoxon(differences)
    return f"{mean:+.2f} dB ({mean - half:+.2f} to {mean + half:+.2f}; p = {p:.2g})"


def robustness(found: dict[str, str], baseline: Path, reports: Path) -> list[dict[str, str]]:
    """How the methods do under changes that nothing was trained for: a row for each change and method."""
    sources = {"total variation": (baseline, "total_variation")}
    for cell, regularizer in found.items():
        for key, suffix in (("pretrained", "pre-trained"), ("finetuned", "DEQ")):
            sources[f"{regularizer.replace('_', ' ')}, {suffix}"] = (reports / cell, key)
    table: dict[str, list[dict[str, str]]] = {}
    for title, (folder, key) in sources.items():
        for row in read(folder / "robustness.csv"):
            if row["method"] == key:
                table.setdefault(row["change"], []).append(_elsewhere(title, row))
    return [row for rows in table.values() for row in rows]


def _elsewhere(title: str, row: dict[str, str]) -> dict[str, str]:
    return {
        "change": row["change"],
        "method": title,
        "PSNR (dB)": f"{float(row['psnr']):.2f}",
        "of the initial guess (dB)": f"{float(row['psnr_initial']):.2f}",
        "converged": f"{float(row['converged']):.0%}",
        "data misfit": f"{float(row['misfit']):.4f}" if row["misfit"] else "not finite",
    }


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tuned(methods: Sequence[Method]) -> dict[str, Method]:
    """The row of each regularizer after DEQ training."""
    return {method.regularizer: method for method in methods if method.phase == "finetuned"}


def _read(folder: Path, key: str, title: str, phase: str, regularizer: str) -> Method:
    rows = [row for row in read(folder / "images.csv") if row["method"] == key]
    metrics, seconds = (io.read_json(folder / name)[key] for name in ("metrics.json", "seconds.json"))
    # Baselines are not iterated on.
    patient = read(folder / "long.csv") if (folder / "long.csv").exists() else []
    long_change = next((float(row["change"]) for row in patient if row["method"] == key), None)
    return Method(title, phase, regularizer, metrics, rows, seconds, long_change=long_change)
