"""DEQ fine-tuning: least squared error at the fixed point of the reconstruction."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from elder.adjoint import JACOBIAN_FREE, AndersonFixedPoint, FixedPoint, Neumann
from elder.errors import UserError
from elder.fidelity import Fidelity
from elder.images import Patches
from elder.implicit import ImplicitGradient
from elder.linear import GMRES, MINRES, LinearSolver
from elder.measurements import Measured
from elder.model import Model, Tuning
from elder.objective import Equilibrium, Objective, pose
from elder.operators.base import Operator
from elder.solvers import fixed_point
from elder.training.checkpoint import Checkpoint
from elder.training.pretrain import SHORTEST, Report
from elder.training.validation import Score, validate

# ‖x − x̄‖² of each image to a loss. Its logarithm, PSNR but for the sign, weighs easy and hard images alike.
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"mse": torch.mean, "psnr": lambda error: error.log().mean()}


@dataclass(frozen=True)
class Finetuning:
    """Settings of `finetune`."""

    steps: int = 240
    batch: int = 8
    patch: int = 48
    learning_rate: float = 3e-4  # of the network, the peak of a one-cycle schedule
    tuning_rate: float = 1e-2  # of log λ and log σ, likewise
    clip: float = 3.0  # largest gradient norm
    tol: float = 3e-4  # of the forward solve
    max_steps: int = 60
    adjoint: str = "krylov"  # how the backward pass solves its linear system, see `ADJOINTS`
    adjoint_tol: float = 5e-2  # of the linear solve of the backward pass
    adjoint_steps: int = 40  # products with the Hessian at most, terms of neumann
    validate_every: int = 40
    loss: str = "psnr"  # mse: mean squared error; psnr: its logarithm, image by image
    patience: int = 10  # steps in a row without any usable image before training gives up
    checkpoint_every: int = 20  # steps
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if name not in ("seed", "loss", "adjoint") and not getattr(self, name) > 0:
                raise UserError(f"finetune.{name}={getattr(self, name)} must be positive")
        if self.loss not in LOSSES:
            raise UserError(f"finetune.loss={self.loss!r} must be one of {', '.join(LOSSES)}")
        if self.adjoint not in ADJOINTS:
            raise UserError(f"finetune.adjoint={self.adjoint!r} must be one of {', '.join(ADJOINTS)}")


def _krylov(problem: Equilibrium, tol: float, steps: int) -> LinearSolver:
    # The Hessian of an energy is symmetric; the Jacobian of an implicit regulariser is not.
    return MINRES(tol, steps) if isinstance(problem, Objective) else GMRES(tol, steps)


# Solvers of the adjoint equation, from the problem, a tolerance and a number of steps.
ADJOINTS: dict[str, Callable[[Equilibrium, float, int], LinearSolver]] = {
    "krylov": _krylov,  # MINRES for an energy, GMRES without
    "anderson": lambda problem, tol, steps: AndersonFixedPoint(tol, steps),
    "fixed_point": lambda problem, tol, steps: FixedPoint(tol, steps),
    "neumann": lambda problem, tol, steps: Neumann(steps),
    "jacobian_free": lambda problem, tol, steps: JACOBIAN_FREE,
}


class Parameters(nn.Module):
    """θ: the network's weights with log λ and log σ beside them."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.regularizer = copy.deepcopy(model.regularizer).train().requires_grad_()
        log_weight, log_sigma = math.log(model.tuning.weight), math.log(model.tuning.sigma)
        self.log_weight = nn.Parameter(torch.tensor(log_weight, dtype=torch.float64, device=model.device))
        self.log_sigma = nn.Parameter(torch.tensor(log_sigma, dtype=torch.float64, device=model.device))

    def objective(self, fidelity: Fidelity) -> Equilibrium:
        return pose(fidelity, self.regularizer, self.log_weight.exp(), self.log_sigma.exp())

    def model(self, before: Model, scale: float) -> Model:
        """The model with these parameters, frozen, its first step τ = scale / λ."""
        weight, sigma = float(self.log_weight.detach().exp()), float(self.log_sigma.detach().exp())
        tuning = replace(before.tuning, weight=weight, sigma=sigma, step=scale / weight)
        return replace(before, regularizer=copy.deepcopy(self.regularizer).eval().requires_grad_(False), tuning=tuning)


class Progress:
    """Everything that a fine-tuning carries from one step to the next."""

    def __init__(self, before: Model, settings: Finetuning) -> None:
        self.theta = Parameters(before)
        rates = [settings.learning_rate, settings.tuning_rate]
        groups = [self.theta.regularizer.parameters(), [self.theta.log_weight, self.theta.log_sigma]]
        self.optimizer = torch.optim.Adam([{"params": g, "lr": r} for g, r in zip(groups, rates, strict=True)])
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, rates, total_steps=max(settings.steps, SHORTEST), pct_start=0.2
        )
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.scale = before.tuning.weight * before.tuning.step  # λτ
        self.step, self.failures = 0, 0
        self.best, self.best_score = before, Score(-math.inf, False)

    def state(self) -> dict[str, Any]:
        """What `restore` takes, without pickled objects."""
        return {
            "parts": {name: getattr(self, name).state_dict() for name in ("theta", "optimizer", "schedule")},
            "generator": self.generator.get_state(),
            "numbers": {name: getattr(self, name) for name in ("scale", "step", "failures")},
            "score": asdict(self.best_score),
            "best": {"weights": self.best.regularizer.state_dict(), "tuning": asdict(self.best.tuning)},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        for name, part in state["parts"].items():
            getattr(self, name).load_state_dict(part)
        self.generator.set_state(state["generator"])
        vars(self).update(state["numbers"])
        self.best_score = Score(**state["score"])
        regularizer = copy.deepcopy(self.best.regularizer)
        regularizer.load_state_dict(state["best"]["weights"])
        self.best = replace(self.best, regularizer=regularizer, tuning=Tuning(**state["best"]["tuning"]))

    def judge(self, model: Model, score: Score) -> bool:
        """Keep the model if it is the best so far; whether its solves fail where those of the best do not."""
        if score.beats(self.best_score):
            self.best, self.best_score = model, score
        return self.best_score.converged and not score.converged

    @torch.no_grad()
    def go_back(self) -> None:
        """To the best so far, with half the learning rates and without momentum."""
        self.theta.regularizer.load_state_dict(self.best.regularizer.state_dict())
        self.theta.log_weight.fill_(math.log(self.best.tuning.weight))
        self.theta.log_sigma.fill_(math.log(self.best.tuning.sigma))
        self.scale = self.best.tuning.weight * self.best.tuning.step
        self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            for rate in ("lr", "initial_lr", "max_lr", "min_lr"):  # those that the schedule reads
                group[rate] /= 2


def finetune(
    before: Model,
    patches: Patches,
    validation: Sequence[Measured],
    settings: Finetuning,
    report: Report,
    *,
    checkpoint: Checkpoint | None = None,
) -> Model:
    """The model whose fixed points have the least mean squared error, of those seen at each validation.

    Each step simulates measurements of fresh patches, solves for the fixed points without recording, and takes the
    gradient in θ = (network, λ, σ) by implicit differentiation. The fixed point does not depend on τ, so no gradient
    reaches it: training keeps λτ where the line search leaves it. Images whose forward or backward solve failed are
    left out of the step and counted. The first validation is of `before`, so the result is never worse on it. A
    validation whose solves fail, where those of the best so far converged, sends training back there with half the
    learning rates: images left out pull no more, and a regulariser without fixed points would get ever worse.
    `report` gets each step's number and its figures. With a checkpoint it goes on where the last run stopped. Raises
    `FloatingPointError` after `patience` steps in a row without a usable image.
    """
    now = Progress(before, settings)
    state = None if checkpoint is None else checkpoint.load()
    if state is not None:
        now.restore(state)
    else:
        now.best_score, _ = validate(before, validation)
        report(0, {"val_psnr": now.best_score.psnr})
    for step in range(now.step + 1, settings.steps + 1):
        x = patches.draw(settings.batch, now.generator)
        operator, y = before.problem.simulate(x, now.generator)
        operator, y, x = operator.to(before.device), y.to(before.device), x.to(before.device)
        figures = _update(now, before, operator, y, x, settings)
        now.failures = now.failures + 1 if "loss" not in figures else 0
        if now.failures >= settings.patience:
            raise FloatingPointError(
                f"no image was usable in {now.failures} steps in a row: lower finetune.learning_rate, or raise "
                "finetune.max_steps and finetune.adjoint_steps"
            )
        if step % settings.validate_every == 0 or step == settings.steps:
            model = now.theta.model(before, now.scale)
            score, _ = validate(model, validation)
            figures |= {"val_psnr": score.psnr, "went_back": 0.0}
            if now.judge(model, score):
                now.go_back()
                figures["went_back"] = 1.0
        now.step = step
        report(step, {**figures, "skipped": float("loss" not in figures)})
        if checkpoint is not None:
            checkpoint.save(step, now.state())
    return now.best


def _update(
    now: Progress, before: Model, operator: Operator, y: Tensor, x: Tensor, settings: Finetuning
) -> dict[str, float]:
    """One step of the optimizer on the measurements y of the clean patches x; its figures.

    The figures hold a loss only where some image was usable.
    """
    theta, start = now.theta, before.problem.initial(operator, y)
    problem = theta.objective(before.problem.fidelity(operator, y))
    weight = float(problem.weight.detach())
    tau = torch.tensor(now.scale / weight)
    options = {"tol": settings.tol, "max_steps": settings.max_steps, "precision": before.precision}
    solution = fixed_point(problem, start, tau, **options)
    now.scale = weight * float(solution.step.min())
    figures = {
        "weight": weight,
        "sigma": float(problem.sigma.detach()),
        "step_size": now.scale / weight,
        "forward_steps": float(solution.steps.double().mean()),
        "forward_failed": float((~solution.usable).sum()),
    }
    index = solution.usable.nonzero().flatten()
    if not len(index):
        return figures
    adjoint = ImplicitGradient(ADJOINTS[settings.adjoint](problem, settings.adjoint_tol, settings.adjoint_steps))
    attached, backward = adjoint.attach(problem.select(index), solution.x[index], solution.step[index])
    error = (attached - x[index]).square().flatten(1).mean(1)
    loss = LOSSES[settings.loss](error)
    now.optimizer.zero_grad()
    loss.backward(inputs=list(theta.parameters()))
    norm = torch.nn.utils.clip_grad_norm_(theta.parameters(), settings.clip)
    figures |= {"backward_products": float(backward.products), "backward_failed": float(backward.skipped)}
    if bool(norm.isfinite()) and backward.skipped < len(index):
        now.optimizer.step()
        now.schedule.step()
        figures |= {"loss": float(loss.detach()), "mse": float(error.detach().mean()), "gradient_norm": float(norm)}
    return figures
