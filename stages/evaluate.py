"""Compare the reconstructions of the test images: initial guess, total variation, before and after DEQ training."""

from __future__ import annotations

import argparse
from pathlib import Path

from elder import evaluation, files, problems
from elder.compute import Compute
from elder.images import to_array
from elder.measurements import read_all
from elder.model import load
from pipeline import pictures, tracking
from stages import prepared, settings
from stages.params import Evaluation

TITLES = {
    "total_variation": "total variation",
    "pretrained": "before DEQ",
    "finetuned": "after DEQ",
}


def main(arguments: argparse.Namespace) -> None:
    """Write the table, the figures of every image, the convergence curves and the panel of pictures."""
    chosen = settings.typed(Evaluation, "evaluate")
    problem = problems.make(arguments.problem, settings.section("simulate", arguments.problem))
    parts = {}
    for part in ("validation", "test"):
        _, truths = prepared.images(arguments.images, part)
        parts[part] = read_all(arguments.measurements / part, problem, truths)
    compute = settings.typed(Compute, "compute")
    before, after = load(arguments.tuned).on(compute), load(arguments.finetuned).on(compute)
    cell = f"evaluate {arguments.problem}-{arguments.regularizer}"
    inputs = [arguments.images, arguments.measurements, arguments.tuned, arguments.finetuned]
    out = arguments.out
    with tracking.run(cell, {"evaluate": vars(chosen), "problem": problem.settings}, inputs) as log:
        test = parts["test"]
        weight = evaluation.tune_tv(problem, parts["validation"], chosen.tv_weights)
        results = {
            "initial": evaluation.evaluate_initial(problem, test),
            "total_variation": evaluation.evaluate_tv(problem, test, weight),
            "pretrained": evaluation.evaluate(before, test),
            "finetuned": evaluation.evaluate(after, test),
        }
        titles = {"initial": problem.initial_name, **TITLES}
        write(results, titles, out)
        curves = {
            TITLES[name]: evaluation.convergence(model, test[0], chosen.curve_steps)
            for name, model in (("pretrained", before), ("finetuned", after))
        }
        rows = [{"method": name, **point} for name, curve in curves.items() for point in curve]
        files.write_csv(out / "convergence.csv", rows)
        pictures.curves(out / "convergence.png", curves, test[0].name)
        log.metrics(
            {f"{name}.{key}": value for name, group in results.items() for key, value in evaluation.mean(group).items()}
        )
        for name in ("panel.png", "convergence.png", "images.csv"):
            log.artifact(out / name)


def write(results: dict[str, list[evaluation.Result]], titles: dict[str, str], folder: Path) -> None:
    """The table of means, every image's figures, and the panel. Seconds go to MLflow alone: they never repeat."""
    table = {}
    for name, group in results.items():
        mean = evaluation.mean(group)
        table[name] = {"psnr": round(mean["psnr"], 4), "ssim": round(mean["ssim"], 5), "steps": mean["steps"]}
    files.write_json(folder / "metrics.json", table)
    rows = [{"method": name, **result.row} for name, group in results.items() for result in group]
    files.write_csv(folder / "images.csv", [{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    truths = [to_array(result.measured.truth[0]) for result in results["initial"]]
    columns = {
        titles[name]: [(to_array(r.x[0]), f"{r.row['psnr']:.2f} dB") for r in group] for name, group in results.items()
    }
    pictures.panel(folder / "panel.png", {"ground truth": [(truth, "") for truth in truths], **columns})


if __name__ == "__main__":
    choices = {"problem": "the inverse problem", "regularizer": "the parameterisation"}
    settings.run(main, "images", "measurements", "tuned", "finetuned", "out", **choices)
