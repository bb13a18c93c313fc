"""Writing the results of `baseline` and `evaluate`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elder import io
from elder.evaluation.results import Result, deviation, mean
from elder.problems.base import Problem
from elder.problems.samples import Sample, measure

# The results of each method, by its name.
Results = Mapping[str, Sequence[Result]]


def write_results(results: Results, folder: Path) -> None:
    """Write means and deviations, the metrics of every image, and the pictures.

    Seconds differ from run to run, so they have a file of their own.
    """
    io.write_json(folder / "metrics.json", {name: metrics(group) for name, group in results.items()})
    rows = [{"method": name, **result.row} for name, group in results.items() for result in group]
    io.write_csv(folder / "images.csv", [{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    io.write_json(folder / "seconds.json", {name: mean(group)["seconds"] for name, group in results.items()})
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    for name, group in results.items():
        for result in group:
            io.write_image(folder / "pictures" / name / f"{result.sample.name}.tif", io.to_array(result.x[0]))


def metrics(group: Sequence[Result]) -> dict[str, float]:
    """The numbers that a table shows of one method."""
    average, spread = mean(group), deviation(group)
    return {
        "psnr": round(average["psnr"], 4),
        "psnr_sd": round(spread["psnr"], 4),
        "ssim": round(average["ssim"], 5),
        "ssim_sd": round(spread["ssim"], 5),
        "steps": average["steps"],
    }


def remeasured(problem: Problem, samples: Sequence[Sample], change: Mapping[str, Any]) -> list[Sample]:
    """The same images, measured by the problem with some settings changed."""
    return measure(problem.override(change), [s.name for s in samples], [s.truth for s in samples])


def robustness_row(method: str, change: Mapping[str, Any], group: Sequence[Result]) -> dict[str, Any]:
    """A row of robustness.csv: the mean PSNR of a method under a change of the problem's settings."""
    spelled = ", ".join(f"{key} {value}" for key, value in change.items())
    return {"method": method, "change": spelled, "psnr": mean(group)["psnr"]}


def means(results: Results) -> dict[str, float]:
    """The mean metrics of every method, as MLflow takes them."""
    return {f"{name}.{key}": value for name, group in results.items() for key, value in mean(group).items()}
