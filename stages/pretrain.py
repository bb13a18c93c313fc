"""Pre-train the regularizer as a denoiser."""

from __future__ import annotations

import argparse

import torch

from elder import io, regularizers
from elder.backend import Compute
from elder.model import bundle
from elder.training.initial import initialize, told
from elder.training.pretrain import denoising_psnr, pretrain
from elder.training.processes import Processes, joined
from pipeline.settings import merging, params
from stages import command, inputs, tracked
from stages.patches import read_patches

LEVELS = (0.02, 0.06, 0.1, 0.2)


def main(arguments: argparse.Namespace) -> None:
    """Fit D = I − ∇h to the training images under Gaussian noise; write its weights and its curve."""
    with joined(params.read().compute) as (processes, compute):
        train(arguments, processes, compute)


def train(arguments: argparse.Namespace, processes: Processes, compute: Compute) -> None:
    """Train together with the other processes; the first one writes the results."""
    whole, name = params.read(), arguments.regularizer
    chosen, own, safe = whole.pretraining(name), whole.regularizers[name], whole.safeguards
    patches = read_patches(arguments.images, chosen.patch)
    torch.manual_seed(chosen.seed)
    channels = patches.images[0].shape[1]
    description = merging.description(name, channels, whole.network, own.network, own.own)
    regularizer = regularizers.make(**description).to(compute.device)
    with params.said_of("pretrain"):
        start = initialize(regularizer, description, chosen.init)
    chosen = chosen if start is None else chosen.refining()
    logged = {"pretrain": vars(chosen), "regularizer": description}
    if processes.first:
        print(f"pretrain {name}: {told(start, chosen.init)}", flush=True)
        in_force = {key: value for key, value in own.pretrain.items() if getattr(chosen, key) == value}
        for section, changes, defaults in (
            ("pretrain", in_force, vars(whole.pretrain)),
            ("network", own.network, whole.network),
        ):
            if said := params.overrides(section, f"regularizers.{name}", changes, defaults):
                print(said)
    title, every = f"pretrain {name}", safe.pretrain_checkpoint
    kept = tracked.training(processes, title, logged, arguments.reads, steps=chosen.steps, every=every)
    with kept as (log, report, checkpoint):
        trained = pretrain(
            regularizer,
            patches,
            chosen,
            report,
            precision=compute.precision,
            patience=safe.patience,
            checkpoint=checkpoint,
            processes=processes,
        )
        if not processes.first:
            return
        _, validation = inputs.clean_images(arguments.images, "validation")
        scores = {f"{level:g}": denoising_psnr(trained.result, validation, level) for level in LEVELS}
        log.metrics({f"denoising_psnr_{level}": score for level, score in scores.items()})
        config = {
            "regularizer": description,
            "metadata": {"stage": "pretrain", "init": start, "settings": vars(chosen), "denoising_psnr": scores},
        }
        bundle.write(arguments.out, trained.result, config)
        io.write_json(arguments.metrics, {"denoising_psnr": scores})
        io.write_csv(arguments.curve, trained.history.rows)
        log.artifacts(arguments.metrics, arguments.curve)


def nothing(arguments: argparse.Namespace) -> None:
    """Empty results, for a regularizer that no cell uses."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    io.write_json(arguments.metrics, {})
    io.write_csv(arguments.curve, [])


if __name__ == "__main__":
    command.run(
        main,
        unused=nothing,
        reads=("images",),
        writes=("out", "metrics", "curve"),
        shared=True,
        regularizer="the parameterization",
    )
