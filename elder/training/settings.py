"""The settings of DEQ fine-tuning, and what their words stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elder.errors import UserError
from elder.linear import GMRES, MINRES, AndersonFixedPoint, FixedPoint, LinearSolver, Neumann
from elder.objective import Equilibrium

# Added to a mean squared error before its logarithm is taken: 160 dB below white. The gradient of log 0 would be NaN,
# and a black patch that is measured without noise is reconstructed without error.
FLOOR = 1e-16
# The loss from the mean squared error of each image. The logarithm, which is PSNR with the sign changed, gives easy and
# hard images the same weight.
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"mse": torch.mean, "psnr": lambda error: (error + FLOOR).log().mean()}
# A loss whose gradient grows with the error gets its penalty in the same units.
UNITS: dict[str, Callable[[Tensor], Tensor]] = {"mse": torch.mean}
# Settings of `Finetuning` that must be positive.
POSITIVE = (
    *("steps", "batch", "patch", "learning_rate", "tuning_rate", "clip", "tol", "max_steps", "adjoint_tol"),
    *("adjoint_steps", "stability_weight", "stability_every", "power_steps", "validate_every", "go_back"),
)
# The tolerances of the solves at the start of the warm-up, and the most steps, in units of those at its end.
LOOSER, FEWER = 10.0, 0.4
# The most steps that a solve may grow to, in units of `max_steps`, and what a step of training keeps of the share of
# solves that converged before.
LONGER, REMEMBERED = 3.0, 0.95


@dataclass(frozen=True)
class Finetuning:
    """Settings of `elder.training.finetune`.

    Raises `UserError`, which names the setting, for a number out of its range or an unknown word.
    """

    steps: int = 80
    batch: int = 2
    patch: int = 96
    learning_rate: float = 3e-4  # of the weights, the peak of a one-cycle schedule
    tuning_rate: float = 1e-2  # of log λ and log σ, also the peak
    clip: float = 3.0  # largest gradient norm
    tol: float = 3e-4  # of the forward solve
    max_steps: int = 20  # of a forward solve
    solved: float = 0.8  # share of the forward solves that `max_steps` grows for, up to threefold; 0: it stays
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
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise UserError(f"{name}={getattr(self, name)} must be positive")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"warmup={self.warmup} must be in [0, 1]")
        for name in ("solved", "stability", "average"):
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


def stretched(stretch: float, solved: float, target: float) -> float:
    """The factor on the most steps of a solve after a step of training, from the share of solves that converged lately.

    It rises by a twentieth where the share is below the target, and falls by a hundredth elsewhere, within [1, LONGER].
    A training that shifts λ, σ or the network to where solves take longer would otherwise be left with gradients at
    points that are no fixed points, and optimize where solves are cut off.
    """
    factor = 1.05 if solved < target else 0.99
    return min(max(stretch * factor, 1.0), LONGER)
