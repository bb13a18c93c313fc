"""The initial guess and total variation on a problem's test images: what every regularizer is compared with."""

from __future__ import annotations

import argparse

from elder import io
from elder.evaluation import baselines
from elder.problems.samples import is_constrained, remeasured
from pipeline.settings import params
from pipeline.tracking import logs
from stages import command
from stages.results import TABLES, means, robustness_row, write_results
from stages.samples import find_problem, read_samples


def main(arguments: argparse.Namespace) -> None:
    """Write the table, the metrics of every image and the pictures; λ of total variation is searched on validation."""
    chosen = params.read().evaluate
    problem = find_problem(arguments.problem)
    validation, test = (
        read_samples(arguments.images, arguments.measurements, part, problem) for part in ("validation", "test")
    )
    changes = chosen.robustness[problem.name]
    logged = {"tv_weights": chosen.tv_weights, "robustness": changes, "problem": problem.settings}
    with logs.run(f"baseline {arguments.problem}", logged, arguments.reads) as log:
        lambda_reg = baselines.tune_tv(problem, validation, chosen.tv_weights, print)
        results = {
            "initial": baselines.evaluate_initial(problem, test),
            "total_variation": baselines.evaluate_tv(problem, test, lambda_reg),
        }
        # Under a hard constraint λ has no effect, so there is none to show.
        used = {} if is_constrained(problem, test) else {"lambda_reg": float(f"{lambda_reg:.3g}")}
        scores = write_results(results, arguments.out, {"total_variation": used})
        rows = []
        for change in changes:
            other = problem.override(change)
            changed = baselines.evaluate_tv(other, remeasured(other, test), lambda_reg)
            rows.append(robustness_row("total_variation", change, changed))
        io.write_csv(arguments.out / "robustness.csv", rows)
        log.metrics(means(scores) | {f"total_variation.{key}": value for key, value in used.items()})
        log.artifacts(*(arguments.out / name for name in TABLES))


def nothing(arguments: argparse.Namespace) -> None:
    """Empty results, for a problem that no cell uses."""
    (arguments.out / "pictures").mkdir(parents=True, exist_ok=True)
    for name in (*TABLES, "seconds.json"):
        path = arguments.out / name
        io.write_csv(path, []) if path.suffix == ".csv" else io.write_json(path, {})


if __name__ == "__main__":
    command.run(main, unused=nothing, reads=("images", "measurements"), writes=("out",), problem="the inverse problem")
