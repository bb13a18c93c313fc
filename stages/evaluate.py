"""Reconstruct the test images by the regulariser before and after DEQ training."""

from __future__ import annotations

import argparse

from elder import evaluation, files
from elder.compute import Compute
from elder.model import load
from pipeline import tracking
from stages import compared, posed, settings
from stages.params import Evaluation


def main(arguments: argparse.Namespace) -> None:
    """Write the table, every image's figures, the pictures, the convergence curves, and the figures elsewhere."""
    chosen = settings.typed(Evaluation, "evaluate")
    compute = settings.typed(Compute, "compute")
    problem = posed.problem(arguments.problem)
    test = posed.measured(arguments.images, arguments.measurements, "test", problem)
    models = {
        "pretrained": load(arguments.tuned).on(compute),
        "finetuned": load(arguments.finetuned).on(compute),
    }
    params = {"evaluate": vars(chosen), "problem": problem.settings}
    inputs = [arguments.images, arguments.measurements, arguments.tuned, arguments.finetuned]
    with tracking.run(f"evaluate {arguments.cell}", params, inputs) as log:
        results = {name: evaluation.evaluate(model, test) for name, model in models.items()}
        compared.write_results(results, arguments.out)
        curves = {name: evaluation.convergence(m, test[0], chosen.curve_steps) for name, m in models.items()}
        rows = [{"method": name, **point} for name, curve in curves.items() for point in curve]
        files.write_csv(arguments.out / "convergence.csv", rows)
        rows = []
        for change in chosen.robustness.get(problem.name, []):
            elsewhere = compared.changed(problem, test, change)
            for name, model in models.items():
                mean = evaluation.mean(evaluation.evaluate(model.override(change), elsewhere))
                rows.append({"method": name, "change": compared.spelled(change), "psnr": mean["psnr"]})
        files.write_csv(arguments.out / "robustness.csv", rows)
        rows = []
        for name, model in models.items():
            patient = evaluation.mean(evaluation.evaluate_long(model, test[: chosen.long_images], chosen.long_steps))
            usual = evaluation.mean(results[name][: chosen.long_images])
            rows.append({"method": name, "steps": chosen.long_steps, "change": patient["psnr"] - usual["psnr"]})
        files.write_csv(arguments.out / "long.csv", rows)
        log.metrics(compared.means(results) | {f"{row['method']}.long_change": row["change"] for row in rows})


if __name__ == "__main__":
    settings.run(
        main,
        "images",
        "measurements",
        "tuned",
        "finetuned",
        "out",
        problem="the inverse problem",
        cell="what is compared",
    )
