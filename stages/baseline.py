"""The initial guess and total variation on a problem's test images: what every regulariser is compared with."""

from __future__ import annotations

import argparse

from elder import evaluation, files
from pipeline import tracking
from stages import compared, posed, settings
from stages.params import Evaluation


def main(arguments: argparse.Namespace) -> None:
    """Write the table, the figures of every image and the pictures; λ of total variation is tuned on validation."""
    chosen = settings.typed(Evaluation, "evaluate")
    problem = posed.problem(arguments.problem)
    parts = [posed.measured(arguments.images, arguments.measurements, part, problem) for part in ("validation", "test")]
    params = {"evaluate": vars(chosen), "problem": problem.settings}
    with tracking.run(f"baseline {arguments.problem}", params, [arguments.images, arguments.measurements]) as log:
        validation, test = parts
        weight = evaluation.tune_tv(problem, validation, chosen.tv_weights)
        results = {
            "initial": evaluation.evaluate_initial(problem, test),
            "total_variation": evaluation.evaluate_tv(problem, test, weight),
        }
        compared.write_results(results, arguments.out)
        rows = []
        for change in chosen.robustness.get(problem.name, []):
            other, elsewhere = problem.override(change), compared.changed(problem, test, change)
            mean = evaluation.mean(evaluation.evaluate_tv(other, elsewhere, weight))
            rows.append({"method": "total_variation", "change": compared.spelled(change), "psnr": mean["psnr"]})
        files.write_csv(arguments.out / "robustness.csv", rows)
        log.metrics(compared.means(results))


if __name__ == "__main__":
    settings.run(main, "images", "measurements", "out", problem="the inverse problem")
