"""Writing the results of `baseline` and `evaluate`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from elder import io
from elder.evaluation.results import Evaluated, Metrics, Result, deviation, mean, mean_guess, succeeded

# The tables that both stages write.
TABLES = ("metrics.json", "images.csv", "robustness.csv")


def write_results(
    results: Mapping[str, Iterable[Result]], folder: Path, used: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, list[Metrics]]:
    """Write means and deviations, the metrics of every image, and the pictures. Returns the numbers of each method.

    results: of each method, by its name. A picture is written as it comes, and not kept.
    used: settings that were searched for, by the name of the method; they go beside its means. Seconds differ from run
    to run, so they have a file of their own.
    """
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    scores: dict[str, list[Metrics]] = {name: [] for name in results}
    for name, group in results.items():
        for result in group:
            io.write_image(folder / "pictures" / name / f"{result.sample.name}.tif", io.to_array(result.x[0]))
            scores[name].append(result.metrics)
    table = {name: {**metrics(group), **(used or {}).get(name, {})} for name, group in scores.items()}
    io.write_json(folder / "metrics.json", table)
    rows = [{"method": name, **image_row(image)} for name, group in scores.items() for image in group]
    io.write_csv(folder / "images.csv", rows)
    io.write_json(folder / "seconds.json", {name: mean(group)["seconds"] for name, group in scores.items()})
    return scores


def image_row(result: Evaluated) -> dict[str, Any]:
    """A row of images.csv. evaluations: of the network; psnr_denoised: of D(x); both None for a baseline."""
    row = {key: value for key, value in result.row.items() if key != "seconds"}
    return {**row, "evaluations": result.evaluations, "psnr_denoised": result.psnr_denoised}


def metrics(group: Sequence[Evaluated]) -> dict[str, float]:
    """The numbers that a table shows of one method.

    converged: the share of the solves that reached a fixed point or a minimum. If it is below 1, some solves were
    stopped early. gap: the largest gap of a solve, in units of its energy. exact: see `mean`.
    """
    average, spread, share = mean(group), deviation(group), succeeded(group)
    gaps = [result.gap for result in group if result.gap is not None]
    return {
        "psnr": round(average["psnr"], 4),
        "psnr_sd": round(spread["psnr"], 4),
        "ssim": round(average["ssim"], 5),
        "ssim_sd": round(spread["ssim"], 5),
        "steps": average["steps"],
        **({} if share is None else {"converged": share}),
        **({"gap": float(f"{max(gaps):.2g}")} if gaps else {}),
        **({"exact": average["exact"]} if "exact" in average else {}),
    }


def robustness_row(method: str, change: Mapping[str, Any], results: Iterable[Result]) -> dict[str, Any]:
    """A row of robustness.csv: what a method makes of the images under a change of the problem's settings.

    psnr and psnr_initial: mean PSNR in dB of the method and of the initial guess. converged: the share of the solves
    that ended well. misfit: mean ‖A x − y‖ / ‖y‖; None if a picture is not finite.
    """
    group = [result.metrics for result in results]
    spelled = ", ".join(f"{key} {value}" for key, value in change.items())
    misfits = [image.row["misfit"] for image in group]
    return {
        "method": method,
        "change": spelled,
        "psnr": mean(group)["psnr"],
        "psnr_initial": mean_guess(group),
        "converged": succeeded(group),
        "misfit": None if None in misfits else sum(misfits) / len(misfits),
    }


def means(results: Mapping[str, Sequence[Evaluated]]) -> dict[str, float]:
    """The mean metrics of every method, as MLflow takes them."""
    return {f"{name}.{key}": value for name, group in results.items() for key, value in mean(group).items()}
