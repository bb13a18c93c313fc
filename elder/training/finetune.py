"""DEQ fine-tuning: least squared error at the fixed point of the reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elder.errors import UserError
from elder.implicit import ImplicitGradient, Linearization, fixed_point_step
from elder.linear import GMRES, MINRES, AndersonFixedPoint, FixedPoint, LinearSolver, Neumann
from elder.model.model import Model
from elder.objective import Equilibrium
from elder.problems.base import Problem
from elder.problems.samples import Sample
from elder.solvers import fixed_point
from elder.stability import adapted, penalty, spectral_radius
from elder.tensors import norm, per_image
from elder.training.checkpoint import Checkpoint
from elder.training.history import History, Report, Trained, silent
from elder.training.patches import Patches
from elder.training.processes import ALONE, Processes
from elder.training.progress import Progress
from elder.training.validation import validate

# The loss from ‖x − x̄‖² of each image. The logarithm, which is PSNR with the sign changed, gives easy and hard images
# the same weight.
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"mse": torch.mean, "psnr": lambda error: error.log().mean()}
# A loss whose gradient grows with the error gets its penalty in the same units.
UNITS: dict[str, Callable[[Tensor], Tensor]] = {"mse": torch.mean, "psnr": lambda error: torch.ones(())}
# The norm of an iterate, in units of that of the initial guess, beyond which its solve has diverged.
DIVERGED = 10.0
# The tolerances of the solves at the start of the warm-up, and the most steps, in units of those at its end.
LOOSER, FEWER = 10.0, 0.4


@dataclass(frozen=True)
class Finetuning:
    """Settings of `finetune`."""

    steps: int = 60
    batch: int = 4
    patch: int = 48
    learning_rate: float = 3e-4  # of the network, the peak of a one-cycle schedule
    tuning_rate: float = 1e-2  # of log λ and log σ, also the peak
    clip: float = 3.0  # largest gradient norm
    tol: float = 3e-4  # of the forward solve
    max_steps: int = 20  # of a forward solve
    warmup: float = 0.3  # share of the training in which the solves' steps grow and their tolerances shrink to these
    adjoint: str = "krylov"  # how the backward pass solves its linear system, see `ADJOINTS`
    adjoint_tol: float = 5e-2  # of the linear solve of the backward pass
    adjoint_steps: int = 30  # products with the Hessian at most, terms of neumann
    fallback: str = "jacobian_free"  # the gradient of images without a fixed point, see `FALLBACKS`
    stability: float = 0.95  # what the spectral radius of the fixed-point map is kept below; 0: no penalty
    stability_weight: float = 30.0  # of the penalty at the start; it is adapted
    stability_every: int = 2  # steps between two penalties
    power_steps: int = 2  # products with the Jacobian that find the spectral radius
    average: float = 0.98  # decay of the moving average of the weights, which is validated; 0: the weights themselves
    validate_every: int = 20
    go_back: float = 6.0  # dB of merit that a state may lose before training goes back to the best one
    loss: str = "psnr"  # mse: mean squared error; psnr: its logarithm, image by image
    seed: int = 3

    def __post_init__(self) -> None:
        may_be_zero = ("seed", "warmup", "stability", "average")
        for name, kind in self.__annotations__.items():
            if kind != "str" and name not in may_be_zero and not getattr(self, name) > 0:
                raise UserError(f"{name}={getattr(self, name)} must be positive")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"warmup={self.warmup} must be in [0, 1]")
        for name in ("stability", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be in [0, 1)")
        for name, known in (("loss", LOSSES), ("adjoint", ADJOINTS), ("fallback", FALLBACKS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}")


def _krylov(problem: Equilibrium, tol: float, steps: int) -> LinearSolver:
    # The Hessian of an energy is symmetric; the Jacobian of an implicit regularizer is not.
    return MINRES(tol, steps) if problem.symmetric else GMRES(tol, steps)


# Solvers of the adjoint equation, from the problem, a tolerance and a number of steps.
ADJOINTS: dict[str, Callable[[Equilibrium, float, int], LinearSolver]] = {
    "krylov": _krylov,  # MINRES for an energy, GMRES without
    "anderson": lambda problem, tol, steps: AndersonFixedPoint(tol, steps),
    "fixed_point": lambda problem, tol, steps: FixedPoint(tol, steps),
    "neumann": lambda problem, tol, steps: Neumann(steps),
    "jacobian_free": lambda problem, tol, steps: Neumann(0),
}
# For images whose forward or backward solve did not converge: one step's gradient, that of five, or none.
FALLBACKS: dict[str, LinearSolver | None] = {
    "jacobian_free": Neumann(0, measured=False),
    "neumann": Neumann(5, measured=False),
    "skip": None,
}


@dataclass(frozen=True)
class Effort:
    """What the solves of one step may cost."""

    tol: float
    max_steps: int
    adjoint_tol: float

    @classmethod
    def at(cls, settings: Finetuning, step: int) -> Effort:
        """Little at first, all that the settings allow after the warm-up; geometric in between.

        A gradient need not be better than its noise, which is that of a batch: early on, when each step moves far,
        rough solves on many pictures teach more than exact ones on few.
        """
        grown = min(1.0, step / max(1.0, settings.warmup * settings.steps)) if settings.warmup else 1.0
        loose = LOOSER ** (1 - grown)
        return cls(
            tol=settings.tol * loose,
            max_steps=max(1, round(settings.max_steps * FEWER ** (1 - grown))),
            adjoint_tol=min(settings.adjoint_tol * loose, max(settings.adjoint_tol, 0.3)),
        )


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
    backward solve converged, else by `settings.fallback` at its last iterate, which pulls it towards a fixed point. A
    penalty keeps the spectral radius of the fixed-point map below `settings.stability`; its weight follows the radius.
    An energy with a certified bound on its concavity needs no penalty. The fixed point does not depend on τ, so no
    gradient reaches it: training keeps λτ where the line search leaves it.

    Validation is of the moving average of θ, and begins with `before`, so the result is never worse on it. A state
    that has lost `settings.go_back` dB of merit after the warm-up sends training back to the best. `report` gets
    each step's number and its metrics while training runs. drawn: the problems that make the training measurements, one
    of them drawn at each step, that of `before` if there is none; the same measurement on smaller pictures, say, or at
    several ratios. With a checkpoint training resumes where the last run stopped, and returns the history of all steps.
    processes: those that share each batch and the validation; the first one alone is given the checkpoint. Raises
    `FloatingPointError` after `patience` steps in a row without a finite gradient.
    """
    processes.check_batch(settings.batch)
    now, history = progress(before, settings, processes), History()

    def record(step: int, metrics: dict[str, float]) -> None:
        history.append(step, metrics)
        report(step, metrics)

    state = processes.from_first(None if checkpoint is None else checkpoint.load())
    if state is not None:
        now.restore(state)
        history.rows.extend(state["history"])
    else:
        now.best_score, _ = validate(before, validation, processes)
        record(0, {"val_psnr": now.best_score.psnr, "val_converged": now.best_score.converged})
    for step in range(now.step + 1, settings.steps + 1):
        now.step = step
        metrics = update(now, before, patches, settings, drawn or [before.problem])
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
            checkpoint.save(step, {**now.state(), "history": history.rows})
    return Trained(now.best, history)


def _validate(now: Progress, before: Model, validation: Sequence[Sample], settings: Finetuning) -> dict[str, float]:
    """Judge the averaged parameters, and go back where they are far below the best."""
    model = now.model.model(before, now.scale)
    score, _ = validate(model, validation, now.processes)
    lost = now.judge(model, score)
    # During the warm-up solves are cut short on purpose, and may not converge yet.
    back = lost > settings.go_back and now.step > settings.warmup * settings.steps
    if back:
        now.go_back()
    return {"val_psnr": score.psnr, "val_converged": score.converged, "went_back": float(back)}


def progress(before: Model, settings: Finetuning, processes: Processes = ALONE) -> Progress:
    """Where a fine-tuning of `before` begins."""
    return Progress(
        before,
        rates=(settings.learning_rate, settings.tuning_rate),
        steps=settings.steps,
        average=settings.average,
        penalty_weight=settings.stability_weight,
        seed=settings.seed,
        processes=processes,
    )


def update(
    now: Progress, before: Model, patches: Patches, settings: Finetuning, drawn: Sequence[Problem]
) -> dict[str, float]:
    """Take one step of the optimizer and return its metrics; they hold a loss only if the gradient was finite.

    drawn: the problems one of which makes the measurements of this step. Every process draws the whole batch, solves
    for its share, and takes the gradient there, by the implicit function theorem, with no other process. Then the
    gradients are averaged over the batch. A process none of whose images gave a gradient adds zero.
    """
    measured = drawn[0] if len(drawn) == 1 else drawn[int(torch.randint(len(drawn), (), generator=now.generator))]
    x, together, batch = patches.draw(settings.batch, now.generator), now.processes, settings.batch
    operator, y = measured.simulate(x, now.generator)
    if together.count > 1:
        own = torch.arange(batch)[together.share(batch)]
        operator, y, x = operator.select(own), y[own], x[own]
    operator, y, x = operator.to(before.device), y.to(before.device), x.to(before.device)
    problem = now.theta.objective(measured.fidelity(operator, y))
    effort = Effort.at(settings, now.step)
    at, tau, solved, metrics = _solve(now, problem, measured.initial(operator, y), effort, settings, before.precision)
    adjoint = ADJOINTS[settings.adjoint](problem, effort.adjoint_tol, settings.adjoint_steps)
    attached, backward = ImplicitGradient(adjoint, FALLBACKS[settings.fallback]).attach_to(at, tau, solved=solved)
    error = (attached - x).square().flatten(1).mean(1)
    errors = together.gather(error.detach(), batch)  # of the whole batch, as all that is called so below
    charge, stability = _stability(at, tau, now, settings)
    total = LOSSES[settings.loss](error) + UNITS[settings.loss](errors).to(error) * charge
    now.optimizer.zero_grad()
    total.backward(inputs=list(now.theta.parameters()))
    together.average_gradients(now.theta.parameters(), len(x) / batch)
    length = torch.nn.utils.clip_grad_norm_(now.theta.parameters(), settings.clip)
    exact = 0 if backward.exact is None else int(backward.exact.sum())
    counts = together.gather(torch.tensor([[exact, backward.skipped, backward.products]]), together.count)
    exact, skipped = counts[:, 0].sum().item(), counts[:, 1].sum().item()
    metrics |= stability | {
        "backward_products": float(counts[:, 2].max()),
        "exact": exact / batch,
        "approximate": 1 - (exact + skipped) / batch,
        "left_out": skipped / batch,
    }
    if bool(length.isfinite()) and skipped < batch:
        now.optimizer.step()
        now.schedule.step()
        now.averaged.update_parameters(now.theta)
        loss = LOSSES[settings.loss](errors)
        metrics |= {"loss": float(loss), "mse": float(errors.mean()), "gradient_norm": float(length)}
    return metrics


def _solve(
    now: Progress, problem: Equilibrium, start: Tensor, effort: Effort, settings: Finetuning, precision: str
) -> tuple[Linearization, Tensor, Tensor, dict[str, float]]:
    """Solve for the fixed points from `start`, (b, c, h, w), without recording.

    Returns the linearization at them, the step τ (b,) of the fixed-point map, which images were solved (b,), and
    metrics of the whole batch.
    """
    lambda_reg = float(problem.lambda_reg.detach())
    first = torch.tensor(now.scale / lambda_reg)
    solution = fixed_point(problem, start, first, tol=effort.tol, max_steps=effort.max_steps, precision=precision)
    told = torch.stack([v.double() for v in (solution.step, solution.steps, ~solution.succeeded, solution.evaluations)])
    sizes, steps, failed, evaluations = now.processes.gather(told.T, settings.batch).T
    now.advance(sizes, lambda_reg)
    # A diverged solve (NaN compares as false) is linearized at its initial guess: its last iterate teaches nothing.
    kept = norm(solution.x) <= DIVERGED * norm(start)
    at = Linearization.at(problem, torch.where(kept.view(-1, 1, 1, 1), solution.x, start))
    # The line search shortens its step where λ∇²h is steep. The nominal step lets the penalty see how steep.
    tau = torch.full_like(solution.step, now.longest / lambda_reg)
    metrics = {
        "weight": lambda_reg,
        "sigma": float(problem.sigma.detach()),
        "step_size": now.scale / lambda_reg,
        "forward_steps": float(steps.mean()),
        "forward_failed": float(failed.sum()),
        "evaluations": float(evaluations.sum()),
    }
    return at, tau, solution.succeeded & kept, metrics


def _stability(
    at: Linearization, tau: Tensor, now: Progress, settings: Finetuning
) -> tuple[Tensor | float, dict[str, float]]:
    """What the loss is charged for a spectral radius above the target at this step, and its metrics."""
    if not settings.stability or now.step % settings.stability_every or _certified(at.problem):
        return 0.0, {}
    rho = _radius(at, tau, now, settings)
    charge = now.penalty_weight * settings.stability_every * penalty(rho, settings.stability)
    radii = now.processes.gather(rho.detach(), settings.batch)
    metrics = {"spectral_radius": float(radii.max()), "penalty_weight": now.penalty_weight}
    now.penalty_weight = adapted(now.penalty_weight, radii, settings.stability)
    return charge, metrics


def _radius(at: Linearization, tau: Tensor, now: Progress, settings: Finetuning) -> Tensor:
    """ρ from where the solve still moves, which is where it converges slowest, with some noise to see the rest."""
    drawn = torch.randn((settings.batch, *at.x.shape[1:]), generator=now.generator)
    noise = drawn[now.processes.share(settings.batch)].to(at.x)
    moving = fixed_point_step(at, tau) - at.x.detach()
    scale = moving.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
    return spectral_radius(at, tau, moving + 0.3 * per_image(scale, noise) * noise, settings.power_steps)


def _certified(problem: Equilibrium) -> bool:
    """Whether the regularizer comes with a bound on its weak convexity."""
    return problem.regularizer.weak_convexity(float(problem.sigma.detach())) is not None
