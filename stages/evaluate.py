"""Reconstruct the test images by the regularizer before and after DEQ training."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from elder import io
from elder.evaluation.evaluate import convergence, evaluate, evaluate_long
from elder.evaluation.results import Metrics, mean
from elder.model.model import Model, load
from elder.problems.samples import Sample, remeasured
from pipeline.settings import params
from pipeline.settings.params import Evaluation
from pipeline.tracking import logs
from stages import command
from stages.results import TABLES, means, robustness_row, write_results
from stages.samples import find_problem, read_samples


def main(arguments: argparse.Namespace) -> None:
    """Write the metrics of every image, the pictures, the convergence curves, and the PSNR under changed settings."""
    chosen, compute = params.read().evaluate, params.read().compute
    problem = find_problem(arguments.problem)
    test = read_samples(arguments.images, arguments.measurements, "test", problem)
    models = {
        "pretrained": load(arguments.tuned, own_code=problem.own_code).on(compute),
        "finetuned": load(arguments.finetuned, own_code=problem.own_code).on(compute),
    }
    changes = chosen.robustness[problem.name]
    effort = {name: getattr(chosen, name) for name in ("curve_steps", "long_steps", "long_images")}
    logged = {"evaluate": effort, "robustness": changes, "problem": problem.settings}
    with logs.run(f"evaluate {arguments.cell}", logged, arguments.reads) as log:
        results = write_results({name: evaluate(model, test) for name, model in models.items()}, arguments.out)
        curves = {name: convergence(model, test[0], chosen.curve_steps) for name, model in models.items()}
        rows = [{"method": name, **point} for name, curve in curves.items() for point in curve]
        io.write_csv(arguments.out / "convergence.csv", rows)
        rows = [row for change in changes for row in robustness(models, test, change)]
        io.write_csv(arguments.out / "robustness.csv", rows)
        rows = [long_row(name, model, test, results[name], chosen) for name, model in models.items()]
        io.write_csv(arguments.out / "long.csv", rows)
        log.metrics(means(results) | {f"{row['method']}.long_change": row["change"] for row in rows})
        log.artifacts(*(arguments.out / name for name in (*TABLES, "convergence.csv", "long.csv")))


def robustness(models: Mapping[str, Model], test: Sequence[Sample], change: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The row of each model under a change of the problem's settings."""
    rows = []
    for name, model in models.items():
        samples = remeasured(model.problem.override(change), test)
        rows.append(robustness_row(name, change, evaluate(model.override(change), samples)))
    return rows


def long_row(
    name: str, model: Model, test: Sequence[Sample], usual: Sequence[Metrics], chosen: Evaluation
) -> dict[str, Any]:
    """What becomes of PSNR when a model iterates for `long_steps` steps, as a mean over `long_images` images.

    usual: what it makes of the test images where solves usually end.
    change: from where solves usually end, in dB. psnr_tenth: after a tenth of the steps; psnr_all: after all of them.
    """
    samples = test[: chosen.long_images]
    tenth, patient = (
        mean(evaluate_long(model, samples, steps))["psnr"]
        for steps in (max(1, chosen.long_steps // 10), chosen.long_steps)
    )
    change = patient - mean(usual[: chosen.long_images])["psnr"]
    return {"method": name, "steps": chosen.long_steps, "change": change, "psnr_tenth": tenth, "psnr_all": patient}


if __name__ == "__main__":
    command.run(
        main,
        reads=("images", "measurements", "tuned", "finetuned"),
        writes=("out",),
        problem="the inverse problem",
        cell="what is compared",
    )
