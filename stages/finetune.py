"""DEQ fine-tuning of the tuned regularizer for one problem."""

from __future__ import annotations

import argparse
from dataclasses import replace

from elder import io
from elder.backend import Compute
from elder.model.model import load
from elder.training.finetune import finetune
from elder.training.history import History
from elder.training.processes import Processes, joined
from elder.training.settings import Finetuning
from elder.training.validation import validate
from pipeline.settings import merging, params
from stages import command, tracked
from stages.patches import read_patches
from stages.samples import read_samples

# dB of merit that a training must end below its best for advice to be given.
TELLING = 0.1


def main(arguments: argparse.Namespace) -> None:
    """Minimize the squared error of the fixed points; write the bundle that is best on validation, and the curve."""
    with joined(params.read().compute) as (processes, compute):
        train(arguments, processes, compute)


def train(arguments: argparse.Namespace, processes: Processes, compute: Compute) -> None:
    """Train together with the other processes; the first one writes the results."""
    whole = params.read()
    chosen, cell, safe = whole.finetuning(arguments.cell), whole.cells[arguments.cell], whole.safeguards
    before = load(arguments.tuned, own_code=whole.own_class(cell.problem)).on(compute)
    patches = read_patches(arguments.images, chosen.patch)
    validation = read_samples(arguments.images, arguments.measurements, "validation", before.problem)
    side = min(min(sample.truth.shape[-2:]) for sample in validation)
    measured = before.problem.on_patches(chosen.patch / side)
    drawn = [measured.override(change) for change in merging.choices(cell.training_problem)]
    logged = {"finetune": vars(chosen), "problem": {**measured.settings, **cell.training_problem}}
    if cell.finetune and processes.first:
        print(params.overrides("finetune", f"cells.{arguments.cell}", cell.finetune, vars(whole.finetune)))
    title, every = f"finetune {arguments.cell}", safe.finetune_checkpoint
    kept = tracked.training(processes, title, logged, arguments.reads, steps=chosen.steps, every=every)
    with kept as (log, report, checkpoint):
        trained = finetune(
            before,
            patches,
            validation,
            chosen,
            report,
            drawn=drawn,
            patience=safe.patience,
            checkpoint=checkpoint,
            processes=processes,
        )
        model, history = trained.result, trained.history
        score = validate(model, validation, processes)
        if not processes.first:
            return
        gained = {
            "validation_psnr_before": history.first("val_psnr"),
            "validation_psnr": score.psnr,
            "weight": model.hyperparameters.lambda_reg,
            "sigma": model.hyperparameters.sigma,
            "validation_converged": score.converged,
            **{name: history.mean(name) for name in ("exact", "approximate", "left_out")},
            **{name: history.total(name) for name in ("evaluations", "skipped", "went_back")},
            "best_step": max((row["step"] for row in history.rows if row.get("val_below") == 0), default=0),
        }
        if said := advice(gained["best_step"], chosen, history):
            print(f"finetune {arguments.cell}: {said}", flush=True)
        log.metrics(gained)
        replace(model, metadata={"stage": "finetune", **gained}).save(arguments.out)
        io.write_json(arguments.metrics, gained)
        io.write_csv(arguments.curve, history.rows)
        log.artifacts(arguments.metrics, arguments.curve)


def advice(best_step: float, settings: Finetuning, history: History) -> str | None:
    """What to try where the second half of a training only lost, or `None` if it did not."""
    below = history.rows[-1]["val_below"]
    if best_step > settings.steps / 2 or below < TELLING:
        return None
    radius = f", or a larger stability than {settings.stability:g}," if settings.stability else ""
    return (
        f"step {best_step:g} of {settings.steps} was the best on validation, and is kept; the last one is "
        f"{below:.2f} dB below. A lower learning_rate{radius} may gain more"
    )


if __name__ == "__main__":
    command.run(
        main,
        reads=("images", "measurements", "tuned"),
        writes=("out", "metrics", "curve"),
        shared=True,
        cell="what is trained",
    )
