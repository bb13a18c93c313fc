"""A trained regularizer with its problem: the bundle on disk, and reconstruction."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elder import problems
from elder.backend import Compute
from elder.errors import UserError
from elder.model import bundle
from elder.objective import Equilibrium, make_objective
from elder.operators.base import Operator
from elder.problems.base import Problem
from elder.regularizers.base import Regularizer
from elder.solvers import Iterate, Solution, fixed_point, path
from elder.solvers.history import History


@dataclass(frozen=True)
class Hyperparameters:
    """The numbers beside the network. All are positive."""

    lambda_reg: float  # λ, the regularization parameter
    sigma: float  # σ, the noise level that conditions the regularizer, in the units of the images
    step: float  # τ, the first step size of a solve
    tol: float = 1e-4  # relative fixed-point residual at which a solve stops
    max_steps: int = 300  # at which a solve stops in any case

    def __post_init__(self) -> None:
        for name in ("lambda_reg", "sigma", "step", "tol", "max_steps"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}={getattr(self, name)} must be positive")

    def to_config(self) -> dict[str, Any]:
        """The section `tuning` of a bundle's config.json, where λ is called `weight`."""
        return {"weight" if name == "lambda_reg" else name: value for name, value in asdict(self).items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Hyperparameters:
        """What `to_config` made. Raises `TypeError` for an unknown or missing entry."""
        return cls(**{"lambda_reg" if name == "weight" else name: value for name, value in config.items()})


@dataclass(frozen=True)
class Info:
    """How a reconstruction went: one entry an image, or plain values for a single picture."""

    status: Any  # converged, precision, max_steps, stalled or not_finite
    steps: Any
    energy: Any  # f(x) at the end; None where the regularizer is no energy
    residual: Any  # ‖proposal − x‖ / ‖x‖ at the end
    seconds: float  # for all of them


@dataclass(frozen=True, eq=False)
class Model:
    """A problem, a regularizer trained for it, and the numbers between them."""

    problem: Problem
    regularizer: Regularizer
    hyperparameters: Hyperparameters
    description: Mapping[str, Any]  # how `regularizers.make` builds the regularizer: name and network
    metadata: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "float32"  # of the rough part of a solve, see `elder.backend`

    @property
    def device(self) -> torch.device:
        """Where the regularizer's weights are, and so where solves run."""
        return next(self.regularizer.parameters()).device

    def on(self, compute: Compute) -> Model:
        """This model on the device of `compute`, its solves begun in the precision of `compute`."""
        placed = copy.deepcopy(self.regularizer).to(compute.device)
        return replace(self, regularizer=placed, precision=compute.precision)

    @property
    def channels(self) -> int:
        """Of the pictures that the regularizer was trained on: 1 for gray, 3 for color."""
        part = self.description.get("network", self.description)
        return int(part.get("channels", 1))

    def objective(self, operator: Operator, y: Tensor) -> Equilibrium:
        """What to solve for y, all on one device: f(x) = g(x; y) + λ h(x, σ), an `Objective`, if h is an energy."""
        lambda_reg = torch.tensor(self.hyperparameters.lambda_reg, dtype=torch.float64, device=y.device)
        sigma = torch.tensor(self.hyperparameters.sigma, dtype=torch.float64, device=y.device)
        return make_objective(self.problem.fidelity(operator, y), self.regularizer, lambda_reg, sigma)

    def solve(self, operator: Operator, y: Tensor) -> Solution:
        """The fixed point that the problem's initial guess leads to: for an energy, a minimum of f.

        Computed on the model's device, and returned on that of y.
        """
        placed, there = operator.to(self.device), y.to(self.device)
        return fixed_point(
            self.objective(placed, there),
            self.problem.initial(placed, there),
            torch.tensor(self.hyperparameters.step),
            tol=self.hyperparameters.tol,
            max_steps=self.hyperparameters.max_steps,
            precision=self.precision,
        ).to(y.device)

    def iterates(self, operator: Operator, y: Tensor) -> Iterator[Iterate[History]]:
        """The iterates of the solve for y without an end, from the initial guess; on the model's device."""
        placed, there = operator.to(self.device), y.to(self.device)
        start = self.problem.initial(placed, there)
        return path(self.objective(placed, there), start, torch.tensor(self.hyperparameters.step))

    def reconstruct(self, y: Any, **operator_arguments: Any) -> tuple[Any, Info]:
        """The picture behind the measurement y, and how the solve went.

        y: an array or tensor (h, w), (c, h, w) or (b, c, h, w) in the problem's measurement space. operator_arguments:
        what the problem needs besides, `mask` for csmri. x comes as an array for an array, with the rank of y.
        Raises `UserError` when y does not fit the problem.
        """
        tensor = y if isinstance(y, Tensor) else torch.from_numpy(np.ascontiguousarray(y))
        if tensor.ndim not in (2, 3, 4):
            raise UserError(f"a measurement must be (h, w), (c, h, w) or (b, c, h, w); got {tuple(tensor.shape)}")
        added = 4 - tensor.ndim
        tensor = tensor[(None,) * added]
        tensor = tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)
        start = time.perf_counter()
        try:
            solution = self.solve(self.problem.bind(tensor, **operator_arguments), tensor)
        except ValueError as error:
            raise UserError(str(error)) from None
        columns = {
            "status": [status.name.lower() for status in solution.status],
            "steps": solution.steps.tolist(),
            "energy": [None] * len(tensor) if solution.energy is None else solution.energy.tolist(),
            "residual": solution.residual.tolist(),
        }
        info = Info(**{k: v[0] if added else v for k, v in columns.items()}, seconds=time.perf_counter() - start)
        x = solution.x[(0,) * added]
        return (x if isinstance(y, Tensor) else x.numpy()), info

    def override(self, settings: Mapping[str, Any]) -> Model:
        """This model for its problem with some settings changed."""
        return replace(self, problem=self.problem.override(settings))

    def save(self, folder: str | Path) -> None:
        """Write the bundle: `weights.safetensors`, then `config.json`, each whole or not at all."""
        config = {
            "problem": {"name": self.problem.name, "settings": self.problem.settings},
            "regularizer": dict(self.description),
            "tuning": self.hyperparameters.to_config(),
            "metadata": dict(self.metadata),
        }
        bundle.write(folder, self.regularizer, config)


def load(folder: str | Path) -> Model:
    """The model of a bundle folder. Raises `UserError` if there is none, or if it is broken."""
    regularizer, config = bundle.read(folder)
    try:
        problem = problems.make(config["problem"]["name"], config["problem"]["settings"])
        hyperparameters = Hyperparameters.from_config(config["tuning"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: the bundle is broken (config.json: {error})") from None
    return Model(problem, regularizer, hyperparameters, config["regularizer"], config.get("metadata", {}))
