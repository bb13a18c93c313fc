"""Tune λ, σ and τ of the pre-trained regulariser on validation: the fair state before DEQ training."""

from __future__ import annotations

import argparse
from dataclasses import replace

from elder import files
from elder.compute import Compute
from elder.model import Tuning, load
from elder.training.tune import Trial, best, tune
from pipeline import tracking
from stages import posed, settings
from stages.params import Search


def main(arguments: argparse.Namespace) -> None:
    """Search λ and σ for the best validation PSNR; write the tuned bundle and every trial."""
    search = settings.typed(Search, "tune")
    compute = settings.typed(Compute, "compute")
    problem = posed.problem(arguments.problem)
    validation = posed.measured(arguments.images, arguments.measurements, "validation", problem)
    start = Tuning(search.weight, search.sigma, 1 / search.weight, search.tol, search.max_steps)
    params = {"tune": vars(search), "problem": problem.settings}
    inputs = [arguments.measurements, arguments.pretrained]
    title = f"tune {arguments.cell}"
    with tracking.run(title, params, inputs) as log, tracking.resumable(log, title, every=1) as checkpoint:

        def report(number: int, trial: Trial) -> None:
            log.step(number, {"weight": trial.weight, "sigma": trial.sigma, "val_psnr": trial.psnr})
            failed = "" if trial.converged else ", not all solves converged"
            print(f"λ = {trial.weight:.4g}, σ = {trial.sigma:.4g}: {trial.psnr:.2f} dB{failed}", flush=True)

        pretrained = replace(load(arguments.pretrained), problem=problem).on(compute)
        model, trials = tune(
            pretrained, validation, start=start, factors=search.factors, report=report, checkpoint=checkpoint
        )
        reached = best(trials).psnr
        replace(model, metadata={"stage": "tune", "validation_psnr": reached}).save(arguments.out)
        log.metrics({"validation_psnr": reached})
        files.write_csv(arguments.trials, [vars(trial) for trial in trials])


if __name__ == "__main__":
    settings.run(
        main,
        "images",
        "measurements",
        "pretrained",
        "out",
        "trials",
        problem="the inverse problem",
        cell="what is trained",
    )
