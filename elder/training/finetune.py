"""DEQ fine-tuning: least squared error at the fixed point of the reconstruction."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from elder.model.model import Model
from elder.problems.base import Problem
from elder.problems.samples import Sample
from elder.training.checkpoint import Checkpoint
from elder.training.draws import Ahead
from elder.training.history import History, Report, Trained, silent
from elder.training.patches import Patches
from elder.training.processes import ALONE, Processes
from elder.training.progress import Progress
from elder.training.settings import Finetuning
from elder.training.update import drawing, update
from elder.training.validation import validate


def finetune(
    before: Model,
    patches: Patches,
    validation: Sequence[Sample],
    settings: Finetuning,
    report: Report = silent,
    *,
    drawn: Sequence[Problem] = (),
    patience: int = 10,
    checkpoint: Checkpoint | None = None,
    processes: Processes = ALONE,
) -> Trained[Model]:
    """The model whose fixed points have the least mean squared error, of those seen at each validation; its history.

    Each step simulates measurements of fresh patches, solves for the fixed points without recording, and takes the
    gradient in θ = (network, λ, σ). Every image contributes: by the implicit gradient where the forward and the
    backward solve converged, else by `settings.fallback` at its last iterate, which pulls it toward a fixed point. A
    penalty keeps the spectral radius of the fixed-point map below `settings.stability`; its weight follows the radius.
    An energy with a certified bound on its concavity needs no penalty. The fixed point does not depend on τ, so no
    gradient reaches it: training keeps λτ where the line search leaves it.

    Validation is of the moving average of θ, and begins with `before`, so the result is never worse on it. A state
    that has lost `settings.go_back` dB of merit after the warm-up sends training back to the best. `report` gets
    each step's number and its metrics while training runs. drawn: the problems that make the training measurements, one
    of them drawn at each step, that of `before` if there is none; the same measurement on smaller pictures, say, or at
    several ratios. With a checkpoint training resumes where the last run stopped, and returns the history of all steps.
    processes: those that share each batch, in parts that bound the memory, and the validation; the first one alone is
    given the checkpoint. Raises `FloatingPointError` after `patience` steps in a row without a finite gradient.
    """
    processes.check_batch(settings.batch)
    now, history = progress(before, settings, processes), History()
    generator = torch.Generator().manual_seed(settings.seed)

    def record(step: int, metrics: dict[str, float]) -> None:
        history.append(step, metrics)
        report(step, metrics)

    state = processes.from_first(None if checkpoint is None else checkpoint.load())
    if state is not None:
        now.restore(state)
        generator.set_state(state["generator"])
        history.rows.extend(state["history"])
    else:
        now.best_score = validate(before, validation, processes)
        record(0, {"val_psnr": now.best_score.psnr, "val_converged": now.best_score.converged})
    with Ahead(drawing(before, patches, settings, drawn), generator, settings.steps) as draws:
        for step in range(now.step + 1, settings.steps + 1):
            now.step = step
            metrics = update(now, before, draws.take(step), settings)
            now.failures = now.failures + 1 if "loss" not in metrics else 0
            if now.failures >= patience:
                raise FloatingPointError(
                    f"no finite gradient in {now.failures} steps in a row: lower the learning rate, or raise "
                    "max_steps and adjoint_steps"
                )
            if step % settings.validate_every == 0 or step == settings.steps:
                metrics |= _validate(now, before, validation, settings)
            record(step, {**metrics, "skipped": float("loss" not in metrics)})
            if checkpoint is not None:
                checkpoint.save(step, {**now.state(), "generator": draws.state, "history": history.rows})
    return Trained(now.best, history)


def _validate(now: Progress, before: Model, validation: Sequence[Sample], settings: Finetuning) -> dict[str, float]:
    """Judge the averaged parameters, and go back where they are far below the best."""
    model = now.model.model(before, now.scale)
    score = validate(model, validation, now.processes)
    lost = now.judge(model, score)
    # During the warm-up solves are cut short on purpose, and may not converge yet.
    back = lost > settings.go_back and now.step > settings.warmup * settings.steps
    if back:
        now.go_back()
    below = max(lost, 0.0)  # the best so far, in dB of merit
    return {"val_psnr": score.psnr, "val_converged": score.converged, "val_below": below, "went_back": float(back)}


def progress(before: Model, settings: Finetuning, processes: Processes = ALONE) -> Progress:
    """Where a fine-tuning of `before` begins."""
    return Progress(
        before,
        rates=(settings.learning_rate, settings.tuning_rate),
        steps=settings.steps,
        average=settings.average,
        penalty_weight=settings.stability_weight,
        processes=processes,
    )
