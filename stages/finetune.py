"""DEQ fine-tuning of the tuned regulariser for one problem."""

from __future__ import annotations

import argparse
from dataclasses import replace

from elder import files
from elder.compute import Compute
from elder.images import Patches
from elder.measurements import read_all
from elder.model import load
from elder.training.finetune import Finetuning, finetune
from pipeline import tracking
from stages import prepared, settings


def main(arguments: argparse.Namespace) -> None:
    """Minimise the squared error of the fixed points; write the bundle that is best on validation, and the curve."""
    chosen = settings.typed(Finetuning, "finetune")
    compute = settings.typed(Compute, "compute")
    before = load(arguments.tuned).on(compute)
    names, images = prepared.images(arguments.images, "train")
    patches = Patches(images, chosen.patch, names)
    _, truths = prepared.images(arguments.images, "validation")
    validation = read_all(arguments.measurements / "validation", before.problem, truths)
    params = {"finetune": settings.section("finetune"), "problem": before.problem.settings}
    cell = f"finetune {arguments.problem}-{arguments.regularizer}"
    inputs = [arguments.images, arguments.measurements, arguments.tuned]
    with tracking.run(cell, params, inputs) as log, tracking.Curve(log, chosen.steps, cell) as curve:
        model = finetune(before, patches, validation, chosen, curve)
        gained = {
            "validation_psnr_before": curve.first("val_psnr"),
            "validation_psnr": curve.best("val_psnr"),
            "weight": model.tuning.weight,
            "sigma": model.tuning.sigma,
        }
        log.metrics(gained)
        replace(model, metadata={"stage": "finetune", **gained}).save(arguments.out)
        files.write_json(arguments.metrics, gained)
        curve.write(arguments.curve)


if __name__ == "__main__":
    choices = {"problem": "the inverse problem", "regularizer": "the parameterisation"}
    settings.run(main, "images", "measurements", "tuned", "out", "metrics", "curve", **choices)
