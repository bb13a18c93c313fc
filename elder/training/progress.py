"""What a fine-tuning carries from one step to the next."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from elder.fidelity import Fidelity
from elder.model.model import Hyperparameters, Model
from elder.objective import Equilibrium, make_objective
from elder.training.averaging import moving_average
from elder.training.pretrain import SHORTEST
from elder.training.processes import ALONE, Processes
from elder.training.validation import Score

# λτ of the nominal step, at which the spectral radius is measured: ∇h = x − D(x) has a Lipschitz constant near 1. The
# shorter one of a single validation image would demand more curvature of every image.
NOMINAL = 1.0
# What λτ regains at a step: the line search of a few images must not shorten every later step.
REGAIN = 1.05
# What a checkpoint keeps beside parameters, optimizer and the best.
NUMBERS = ("scale", "step", "failures", "penalty_weight", "solved", "stretch")


class Parameters(nn.Module):
    """θ: the network's weights with log λ and log σ beside them."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.regularizer = copy.deepcopy(model.regularizer).train().requires_grad_()
        log_lambda, log_sigma = math.log(model.hyperparameters.lambda_reg), math.log(model.hyperparameters.sigma)
        self.log_lambda = nn.Parameter(torch.tensor(log_lambda, dtype=torch.float64, device=model.device))
        self.log_sigma = nn.Parameter(torch.tensor(log_sigma, dtype=torch.float64, device=model.device))

    def objective(self, fidelity: Fidelity) -> Equilibrium:
        """The equation of a data term with these parameters, differentiable in them."""
        return make_objective(fidelity, self.regularizer, self.log_lambda.exp(), self.log_sigma.exp())

    def model(self, before: Model, scale: float) -> Model:
        """The model with these parameters, frozen, its first step τ = scale / λ."""
        lambda_reg, sigma = float(self.log_lambda.detach().exp()), float(self.log_sigma.detach().exp())
        tuning = replace(before.hyperparameters, lambda_reg=lambda_reg, sigma=sigma, step=scale / lambda_reg)
        return replace(
            before, regularizer=copy.deepcopy(self.regularizer).eval().requires_grad_(False), hyperparameters=tuning
        )


class Progress:
    """θ, its moving average, the optimizer, the best so far, and the numbers that adapt on the way."""

    def __init__(
        self,
        before: Model,
        *,
        rates: tuple[float, float],
        steps: int,
        average: float,
        penalty_weight: float,
        processes: Processes = ALONE,
    ) -> None:
        """rates: the peaks for the network, and for log λ and log σ. average: the decay of `averaged`."""
        self.processes = processes
        self.theta = Parameters(before)
        self.averaged = moving_average(self.theta, average)
        groups = [self.theta.regularizer.parameters(), [self.theta.log_lambda, self.theta.log_sigma]]
        self.optimizer = torch.optim.Adam([{"params": g, "lr": r} for g, r in zip(groups, rates, strict=True)])
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, list(rates), total_steps=max(steps, SHORTEST), pct_start=0.2
        )
        self.scale = before.hyperparameters.lambda_reg * before.hyperparameters.step  # λτ
        self.longest = max(NOMINAL, self.scale)
        self.step, self.failures, self.penalty_weight = 0, 0, penalty_weight
        # The share of forward solves that converged of late, and the factor on their most steps that follows it.
        self.solved, self.stretch = 1.0, 1.0
        self.best, self.best_score = before, Score(-math.inf, 0.0)

    @property
    def model(self) -> Parameters:
        """The averaged parameters."""
        module = self.averaged.module
        assert isinstance(module, Parameters)
        return module

    def state(self) -> dict[str, Any]:
        """What `restore` takes, without pickled objects."""
        return {
            "parts": {n: getattr(self, n).state_dict() for n in ("theta", "averaged", "optimizer", "schedule")},
            "numbers": {name: getattr(self, name) for name in NUMBERS},
            "score": asdict(self.best_score),
            "best": {"weights": self.best.regularizer.state_dict(), "tuning": asdict(self.best.hyperparameters)},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        for name, part in state["parts"].items():
            getattr(self, name).load_state_dict(part)
        vars(self).update(state["numbers"])
        self.best_score = Score(**state["score"])
        regularizer = copy.deepcopy(self.best.regularizer)
        regularizer.load_state_dict(state["best"]["weights"])
        self.best = replace(
            self.best, regularizer=regularizer, hyperparameters=Hyperparameters(**state["best"]["tuning"])
        )

    def advance(self, steps: Tensor, lambda_reg: float) -> None:
        """Keep λτ where the line search of most images leaves it, and let it recover. steps: τ of each image."""
        self.scale = min(self.longest, REGAIN * lambda_reg * float(steps.median()))

    def judge(self, model: Model, score: Score) -> float:
        """Keep the model if it is the best so far; the dB of merit by which it falls short of that."""
        if score.beats(self.best_score):
            self.best, self.best_score = model, score
        return self.best_score.merit - score.merit

    @torch.no_grad()
    def go_back(self) -> None:
        """To the best so far, at half the learning rates; the optimizer keeps what it knows of the gradients' size."""
        for part in (self.theta, self.model):
            part.regularizer.load_state_dict(self.best.regularizer.state_dict())
            part.log_lambda.fill_(math.log(self.best.hyperparameters.lambda_reg))
            part.log_sigma.fill_(math.log(self.best.hyperparameters.sigma))
        self.scale = self.best.hyperparameters.lambda_reg * self.best.hyperparameters.step
        for state in self.optimizer.state.values():
            state["exp_avg"].zero_()
        for group in self.optimizer.param_groups:
            for rate in ("lr", "initial_lr", "max_lr", "min_lr"):  # those that the schedule reads
                group[rate] /= 2
