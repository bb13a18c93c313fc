"""DEQ fine-tuning of the tuned regularizer for one problem."""

from __future__ import annotations

import argparse
from dataclasses import replace

from elder import io
from elder.backend import Compute
from elder.model.model import load
from elder.training.finetune import Finetuning, finetune
from elder.training.patches import Patches
from elder.training.validation import validate
from pipeline import settings, tracking
from pipeline.params import Safeguards
from stages import command, inputs
from stages.samples import read_samples


def main(arguments: argparse.Namespace) -> None:
    """Minimize the squared error of the fixed points; write the bundle that is best on validation, and the curve."""
    cell = settings.cell(arguments.cell)
    chosen = settings.typed(Finetuning, "finetune", over=cell.finetune)
    before = load(arguments.tuned).on(settings.typed(Compute, "compute"))
    names, images = inputs.clean_images(arguments.images, "train")
    patches = Patches(images, chosen.patch, names)
    validation = read_samples(arguments.images, arguments.measurements, "validation", before.problem)
    problem = before.problem.override(cell.training_problem)
    params = {"finetune": vars(chosen), "problem": problem.settings}
    safe = settings.typed(Safeguards, "safeguards")
    title, every = f"finetune {arguments.cell}", safe.finetune_checkpoint
    tracked = tracking.training(title, params, arguments.reads, steps=chosen.steps, every=every)
    with tracked as (log, report, checkpoint):
        trained = finetune(
            before,
            patches,
            validation,
            chosen,
            report,
            problem=problem,
            patience=safe.patience,
            checkpoint=checkpoint,
        )
        model, history = trained.result, trained.history
        score, _ = validate(model, validation)
        gained = {
            "validation_psnr_before": history.first("val_psnr"),
            "validation_psnr": score.psnr,
            "weight": model.hyperparameters.lambda_reg,
            "sigma": model.hyperparameters.sigma,
            "validation_converged": score.converged,
            **{name: history.mean(name) for name in ("exact", "approximate", "left_out")},
            **{name: history.total(name) for name in ("evaluations", "skipped", "went_back")},
        }
        log.metrics(gained)
        replace(model, metadata={"stage": "finetune", **gained}).save(arguments.out)
        io.write_json(arguments.metrics, gained)
        io.write_csv(arguments.curve, history.rows)


if __name__ == "__main__":
    command.run(
        main,
        reads=("images", "measurements", "tuned"),
        writes=("out", "metrics", "curve"),
        cell="what is trained",
    )
