"""Tune λ, σ and τ of the pre-trained regularizer on validation: the fair state before DEQ training."""

from __future__ import annotations

import argparse
from dataclasses import replace

from elder import io
from elder.model import bundle
from elder.model.model import Hyperparameters, Model
from elder.problems.samples import is_constrained
from elder.training.tune import Trial, best, edges, starting_lambda, tune
from pipeline.settings import params
from pipeline.tracking import logs
from stages import command
from stages.samples import find_problem, read_samples


def main(arguments: argparse.Namespace) -> None:
    """Search λ and σ for the best validation PSNR; write the tuned bundle and every trial."""
    search, compute = params.read().tune, params.read().compute
    problem = find_problem(arguments.problem)
    validation = read_samples(arguments.images, arguments.measurements, "validation", problem)
    regularizer, config = bundle.read(arguments.pretrained)

    def starting(sigma: float) -> float:
        return search.weight or starting_lambda(validation, problem.noise, sigma)

    lambda_reg = starting(search.sigma)
    start = Hyperparameters(lambda_reg, search.sigma, 1 / lambda_reg, search.tol, search.max_steps)
    pretrained = Model(problem, regularizer, start, config["regularizer"]).on(compute)
    logged = {"tune": search.model_dump(), "problem": problem.settings}
    title = f"tune {arguments.cell}"
    with logs.run(title, logged, arguments.reads) as log, logs.resumable(log, title, every=1) as checkpoint:

        def report(number: int, trial: Trial) -> None:
            log.metrics({"weight": trial.lambda_reg, "sigma": trial.sigma, "val_psnr": trial.psnr}, number)
            print(described(trial), flush=True)

        starts = [(starting(sigma), sigma) for sigma in search.sigma_grid]
        model, trials = tune(
            pretrained,
            validation,
            start=start,
            factors=search.factors,
            starts=starts,
            report=report,
            checkpoint=checkpoint,
        )
        found, early = best(trials), max(trials, key=lambda trial: trial.peak_psnr)
        for name in edges(found, constrained=is_constrained(problem, validation)):
            print(f"tune {arguments.cell}: {name} ended at the edge of its range; the best may lie beyond", flush=True)
        print(f"best where solves end:   {described(found)}\nbest when stopped early: {described(early)}", flush=True)
        metrics = {
            "validation_psnr": found.psnr,
            "validation_converged": found.converged,
            "early_psnr": early.peak_psnr,
            "early_step": early.peak_step,
            "early_sigma": early.sigma,
        }
        replace(model, metadata={"stage": "tune", **metrics}).save(arguments.out)
        log.metrics(metrics)
        io.write_csv(arguments.trials, [row(trial, chosen=trial is found) for trial in trials])
        log.artifacts(arguments.trials)


def row(trial: Trial, *, chosen: bool) -> dict[str, float]:
    """A row of tune.csv. chosen: whether this is the pair that was found; 1 or 0 there."""
    others = {key: value for key, value in vars(trial).items() if key != "lambda_reg"}
    return {"weight": trial.lambda_reg, **others, "chosen": int(chosen)}


def described(trial: Trial) -> str:
    """One line on a trial."""
    return (
        f"λ = {trial.lambda_reg:.4g}, σ = {trial.sigma:.4g}: {trial.psnr:.2f} dB where solves end, "
        f"{trial.converged:.0%} converged; at best {trial.peak_psnr:.2f} dB, at step {trial.peak_step:.0f}"
    )


if __name__ == "__main__":
    command.run(
        main,
        reads=("images", "measurements", "pretrained"),
        writes=("out", "trials"),
        problem="the inverse problem",
        cell="what is trained",
    )
