"""One step of DEQ fine-tuning: forward solves, implicit gradients, and what adapts to a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elder.implicit import Backward, ImplicitGradient, Linearization, fixed_point_step
from elder.model.model import Model
from elder.objective import Equilibrium
from elder.operators.base import Operator
from elder.problems.base import Problem
from elder.solvers import fixed_point
from elder.stability import adapted, penalty, spectral_radius
from elder.tensors import norm, per_image
from elder.training.patches import Patches
from elder.training.progress import Progress
from elder.training.settings import ADJOINTS, FALLBACKS, LOSSES, REMEMBERED, UNITS, Effort, Finetuning, stretched

# The norm of an iterate, in units of that of the initial guess, beyond which its solve has diverged.
DIVERGED = 10.0


@dataclass(frozen=True, eq=False)
class Draw:
    """A batch of b patches with their measurements."""

    problem: Problem  # that made the measurements
    x: Tensor  # (b, c, h, w), clean
    operator: Operator
    y: Tensor  # of the shape of A x
    noise: Tensor | None  # (b, c, h, w), of the directions in which the spectral radius is sought, if it is


@dataclass(frozen=True, eq=False)
class Part:
    """Some images of a batch, b of them, where their forward solves have ended."""

    problem: Equilibrium
    truth: Tensor  # (b, c, h, w)
    x: Tensor  # (b, c, h, w), where the gradient is taken: the last iterate, the initial guess if the solve diverged
    solved: Tensor  # (b,) bool
    told: Tensor  # (b, 5) float64: last step τ, steps, whether the solve failed, evaluations, whether it diverged
    noise: Tensor | None  # (b, c, h, w), of the directions in which the radius is sought, if this step is penalized


@dataclass(frozen=True, eq=False)
class Gradient:
    """What taking the gradient of a part tells."""

    error: Tensor  # (b,) mean squared error
    radius: Tensor | None  # (b,) spectral radius, if this step is penalized
    backward: Backward


def drawing(
    before: Model, patches: Patches, settings: Finetuning, problems: Sequence[Problem] = ()
) -> Callable[[int, torch.Generator], Draw]:
    """What the step of a number draws. problems: those that measure, one at each step; that of `before` if none."""
    # A regularizer with a bound on its weak convexity, at one σ or any other, needs no penalty.
    certified = before.regularizer.weak_convexity(1.0) is not None

    def make(step: int, generator: torch.Generator) -> Draw:
        penalized = bool(settings.stability) and step % settings.stability_every == 0 and not certified
        return draw(patches, settings.batch, problems or [before.problem], generator, penalized=penalized)

    return make


def draw(
    patches: Patches, batch: int, problems: Sequence[Problem], generator: torch.Generator, *, penalized: bool
) -> Draw:
    """A batch that one of the problems measures. penalized: whether the spectral radius is sought in this step."""
    problem = (
        problems[0] if len(problems) == 1 else problems[int(torch.randint(len(problems), (), generator=generator))]
    )
    x = patches.draw(batch, generator)
    operator, y = problem.simulate(x, generator)
    return Draw(problem, x, operator, y, torch.randn(x.shape, generator=generator) if penalized else None)


def update(now: Progress, before: Model, drawn: Draw, settings: Finetuning) -> dict[str, float]:
    """Take one step of the optimizer and return its metrics; they hold a loss only if the gradient was finite.

    drawn: the whole batch. Every process solves for its share of it, and takes the gradient there, by the implicit
    function theorem, with no other process. It computes one part of the share after another and adds their gradients.
    Then the gradients are averaged over the batch. A process none of whose images gave a gradient adds zero. The step
    has the penalty on the spectral radius if `drawn` has noise for it.
    """
    parts = [_solve(now, before, drawn, images, settings) for images in now.processes.parts(settings.batch)]
    metrics = _advance(now, before, parts, settings)
    now.optimizer.zero_grad()
    together, batch, theta = now.processes, settings.batch, list(now.theta.parameters())
    unit, own = _unit(now, parts, settings), sum(len(part.x) for part in parts)
    penalty_grad = None if drawn.noise is None else [torch.zeros_like(p) for p in theta]
    gradients = [_add_gradient(now, part, unit, len(part.x) / own, penalty_grad, settings) for part in parts]
    together.average_gradients(theta, own / batch)
    if penalty_grad is not None:
        metrics["penalty_kept"] = add_bounded(theta, together.average(penalty_grad, own / batch))
    length = torch.nn.utils.clip_grad_norm_(theta, settings.clip)
    metrics |= _adapt(now, gradients, settings)
    counts = together.gather(torch.tensor([_counts([g.backward for g in gradients])]), together.count)
    exact, skipped = counts[:, 0].sum().item(), counts[:, 1].sum().item()
    metrics |= {
        "backward_products": float(counts[:, 2].max()),
        "exact": exact / batch,
        "approximate": 1 - (exact + skipped) / batch,
        "left_out": skipped / batch,
    }
    if bool(length.isfinite()) and skipped < batch:
        now.optimizer.step()
        now.schedule.step()
        now.averaged.update_parameters(now.theta)
        errors = together.gather(torch.cat([g.error for g in gradients]), batch)  # of the whole batch
        loss = LOSSES[settings.loss](errors)
        metrics |= {"loss": float(loss), "mse": float(errors.mean()), "gradient_norm": float(length)}
    return metrics


def _solve(now: Progress, before: Model, drawn: Draw, images: slice, settings: Finetuning) -> Part:
    """Solve for the fixed points of some images of the batch, without recording."""
    index = torch.arange(settings.batch)[images]
    part = drawn.operator if len(index) == settings.batch else drawn.operator.select(index)
    operator, y, x = part.to(before.device), drawn.y[images].to(before.device), drawn.x[images].to(before.device)
    measured = drawn.problem
    problem, effort = now.theta.objective(measured.fidelity(operator, y)), Effort.at(settings, now.step)
    start, first = measured.initial(operator, y), torch.tensor(now.scale / float(problem.lambda_reg.detach()))
    most = _most_steps(now, before, settings)
    solution = fixed_point(problem, start, first, tol=effort.tol, max_steps=most, precision=before.precision)
    # A diverged solve (NaN compares as false) is linearized at its initial guess: its last iterate teaches nothing.
    kept = norm(solution.x) <= DIVERGED * norm(start)
    columns = solution.step, solution.steps, ~solution.succeeded, solution.evaluations, ~kept
    told = torch.stack([column.double() for column in columns])
    where = torch.where(kept.view(-1, 1, 1, 1), solution.x, start)
    noise = None if drawn.noise is None else drawn.noise[images]
    return Part(problem, x, where, solution.succeeded & kept, told.T, noise)


def _most_steps(now: Progress, before: Model, settings: Finetuning) -> int:
    """Of a forward solve: what the warm-up leaves, times `now.stretch`; no more than a reconstruction may take."""
    most = round(now.stretch * Effort.at(settings, now.step).max_steps)
    return min(most, max(settings.max_steps, before.hyperparameters.max_steps))


def _advance(now: Progress, before: Model, parts: Sequence[Part], settings: Finetuning) -> dict[str, float]:
    """Let λτ and the most steps follow the forward solves of the whole batch, and return their metrics."""
    told = now.processes.gather(torch.cat([part.told for part in parts]), settings.batch)
    sizes, steps, failed, evaluations, diverged = told.T
    lambda_reg, most = float(now.theta.log_lambda.detach().exp()), _most_steps(now, before, settings)
    now.advance(sizes, lambda_reg)
    # During the warm-up, solves are cut short on purpose.
    if settings.solved and now.step > settings.warmup * settings.steps:
        now.solved = REMEMBERED * now.solved + (1 - REMEMBERED) * (1 - float(failed.mean()))
        now.stretch = stretched(now.stretch, now.solved, settings.solved)
    return {
        "weight": lambda_reg,
        "sigma": float(now.theta.log_sigma.detach().exp()),
        "step_size": now.scale / lambda_reg,
        "forward_steps": float(steps.mean()),
        "forward_failed": float(failed.sum()),
        "diverged": float(diverged.sum()),
        "most_steps": float(most),
        "evaluations": float(evaluations.sum()),
    }


def _attach(now: Progress, part: Part, settings: Finetuning) -> tuple[Linearization, Tensor, Tensor, Backward]:
    """Record λR_θ at the points of a part.

    Returns the record, the step τ (b,) of the fixed-point map, the mean squared errors (b,) as functions of θ, and what
    their backward pass will fill in.
    """
    at = Linearization.at(part.problem, part.x)
    # The line search shortens its step where λ∇²h is steep. The nominal step lets the penalty see how steep. It follows
    # λ, so the penalty does not reward a λ that makes the step seem short.
    tau = (now.longest / part.problem.lambda_reg).expand(len(part.x))
    adjoint_tol = Effort.at(settings, now.step).adjoint_tol
    adjoint = ADJOINTS[settings.adjoint](part.problem, adjoint_tol, settings.adjoint_steps)
    attached, backward = ImplicitGradient(adjoint, FALLBACKS[settings.fallback]).attach_to(
        at, tau.detach(), solved=part.solved
    )
    return at, tau, (attached - part.truth).square().flatten(1).mean(1), backward


def _unit(now: Progress, parts: Sequence[Part], settings: Finetuning) -> Tensor | float:
    """The unit of the penalty, from the errors of the whole batch.

    Gradients of parts add up only in a unit that is known before the first of them. So a loss with a unit costs one
    more evaluation of each image.
    """
    if settings.loss not in UNITS or parts[0].noise is None:
        return 1.0
    errors = torch.cat([_attach(now, part, settings)[2].detach() for part in parts])
    return UNITS[settings.loss](now.processes.gather(errors, settings.batch)).to(errors)


def _add_gradient(
    now: Progress,
    part: Part,
    unit: Tensor | float,
    share: float,
    penalty_grad: Sequence[Tensor] | None,
    settings: Finetuning,
) -> Gradient:
    """Add the gradient of the loss to that of θ, and the gradient of the penalty to `penalty_grad`.

    share: the part's share of the process's images. unit: of the penalty. penalty_grad: a tensor for each parameter, if
    this step is penalized.
    """
    at, tau, error, backward = _attach(now, part, settings)
    radius, theta = None, list(now.theta.parameters())
    if part.noise is not None and penalty_grad is not None:
        radius = _radius(at, tau, part.noise, settings)
        charge = now.penalty_weight * settings.stability_every * penalty(radius, settings.stability)
        own = torch.autograd.grad(share * unit * charge, theta, retain_graph=True, materialize_grads=True)
        for total, gradient in zip(penalty_grad, own, strict=True):
            total += gradient
    (share * LOSSES[settings.loss](error)).backward(inputs=theta)
    return Gradient(error.detach(), None if radius is None else radius.detach(), backward)


def add_bounded(parameters: Sequence[Tensor], penalty_grad: Sequence[Tensor]) -> float:
    """Add the gradient of the penalty, scaled to the norm of the gradient that is there if its own is larger.

    Where the spectral radius is far from its target, the norm of the penalty's gradient can be ten thousand times that
    of the loss. After clipping, the step would hardly know the loss.

    parameters, penalty_grad: tensors of the same shapes, in pairs. A parameter without a gradient gets its part of the
    penalty's. Returns the factor of the scaling, 1 if there was none.
    """
    ours = torch.stack([p.grad.double().norm() for p in parameters if p.grad is not None]).norm()
    theirs = torch.stack([part.double().norm() for part in penalty_grad]).norm()
    factor = 1.0 if bool(theirs <= ours) else float(ours / theirs)
    for p, part in zip(parameters, penalty_grad, strict=True):
        p.grad = factor * part if p.grad is None else p.grad + factor * part
    return factor


def _adapt(now: Progress, gradients: Sequence[Gradient], settings: Finetuning) -> dict[str, float]:
    """Adapt the weight of the penalty to the spectral radii of the whole batch; the metrics of both."""
    own = [gradient.radius for gradient in gradients if gradient.radius is not None]
    if not own:
        return {}
    radii = now.processes.gather(torch.cat(own), settings.batch)
    metrics = {"spectral_radius": float(radii.max()), "penalty_weight": now.penalty_weight}
    now.penalty_weight = adapted(now.penalty_weight, radii, settings.stability)
    return metrics


def _counts(backward: Sequence[Backward]) -> list[int]:
    """Of this process: images with the implicit gradient, images without any, products of the part with most."""
    exact = sum(int(b.exact.sum()) for b in backward if b.exact is not None)
    return [exact, sum(b.skipped for b in backward), max(b.products for b in backward)]


def _radius(at: Linearization, tau: Tensor, noise: Tensor, settings: Finetuning) -> Tensor:
    """ρ from where the solve still moves, which is where it converges slowest, with some noise to see the rest."""
    noise = noise.to(at.x)
    moving = fixed_point_step(at, tau) - at.x.detach()
    scale = moving.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
    return spectral_radius(at, tau, moving + 0.3 * per_image(scale, noise) * noise, settings.power_steps)
