"""One step of DEQ fine-tuning: forward solves, implicit gradients, and what adapts to a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from elder.implicit import ImplicitGradient, Linearization, fixed_point_step
from elder.model.model import Model
from elder.objective import Equilibrium
from elder.problems.base import Problem
from elder.solvers import fixed_point
from elder.stability import adapted, penalty, spectral_radius
from elder.tensors import norm, per_image
from elder.training.patches import Patches
from elder.training.progress import Progress
from elder.training.settings import ADJOINTS, FALLBACKS, LOSSES, UNITS, Effort, Finetuning

# The norm of an iterate, in units of that of the initial guess, beyond which its solve has diverged.
DIVERGED = 10.0


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
