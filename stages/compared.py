"""Writing what `baseline` and `evaluate` found."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from elder import evaluation, files
from elder.images import to_array
from elder.measurements import Measured, measure
from elder.problems.base import Problem

Results = Mapping[str, Sequence[evaluation.Result]]


def write_results(results: Results, folder: Path) -> None:
    """Means and deviations, every image's figures, the pictures; and seconds, which never repeat, in a file apart."""
    files.write_json(folder / "metrics.json", {name: figures(group) for name, group in results.items()})
    rows = [{"method": name, **result.row} for name, group in results.items() for result in group]
    files.write_csv(folder / "images.csv", [{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    seconds = {name: evaluation.mean(group)["seconds"] for name, group in results.items()}
    files.write_json(folder / "seconds.json", seconds)
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    for name, group in results.items():
        for result in group:
            files.write_image(folder / "pictures" / name / f"{result.measured.name}.tif", to_array(result.x[0]))


def figures(group: Sequence[evaluation.Result]) -> dict[str, float]:
    """What a table shows of one method."""
    mean, deviation = evaluation.mean(group), evaluation.deviation(group)
    return {
        "psnr": round(mean["psnr"], 4),
        "psnr_sd": round(deviation["psnr"], 4),
        "ssim": round(mean["ssim"], 5),
        "ssim_sd": round(deviation["ssim"], 5),
        "steps": mean["steps"],
    }


def changed(chosen: Problem, truths: Sequence[Measured], change: Mapping[str, object]) -> list[Measured]:
    """The same images, measured as the problem would be with some settings changed."""
    return measure(chosen.override(change), [m.name for m in truths], [m.truth for m in truths])


def spelled(change: Mapping[str, object]) -> str:
    """A change of settings as text."""
    return ", ".join(f"{key} {value}" for key, value in change.items())


def means(results: Results) -> dict[str, float]:
    """The mean figures of every method, for MLflow."""
    return {f"{name}.{key}": value for name, group in results.items() for key, value in evaluation.mean(group).items()}
