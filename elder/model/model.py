"""A trained regularizer with its problem: the bundle on disk, and reconstruction."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from elder import problems
from elder.backend import Compute
from elder.errors import DataWarning, UserError
from elder.model import bundle, config
from elder.objective import Equilibrium, make_objective
from elder.operators import relative_misfit
from elder.operators.base import Operator
from elder.problems.base import Problem
from elder.regularizers.base import Regularizer
from elder.solvers import Iterate, Solution, Status, fixed_point, path
from elder.solvers.history import History
from elder.tensors import norm

# An initial guess that reaches less or more than these shares of white is probably in other units than [0, 1].
DARK, BRIGHT = 0.1, 1.5
# The data misfit beyond which a picture does not belong to its measurement, with twice that of the noise.
MISFIT = 0.3
# λτ is about 1 in trained models. Far below, a step hardly moves a picture, and any picture looks like a fixed point.
SHORT = 0.01
# Least and largest hyperparameters. Beyond, float32 rounds everything away, or a solve does not end.
RANGES = {
    "lambda_reg": (1e-12, 1e12),
    "sigma": (1e-12, 1e3),
    "step": (1e-12, 1e12),
    "tol": (1e-16, 1e3),
    "max_steps": (1, 100_000),
}


@dataclass(frozen=True)
class Hyperparameters:
    """The numbers beside the network, each in the range that `RANGES` gives. Raises `UserError` for one out of it."""

    lambda_reg: float  # λ, the regularization parameter
    sigma: float  # σ, the noise level that conditions the regularizer, in the units of the images
    step: float  # τ, the first step size of a solve
    tol: float = 1e-4  # relative fixed-point residual at which a solve stops
    max_steps: int = 300  # at which a solve stops in any case

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name}={getattr(self, name)} must be in [{low:g}, {high:g}]")

    def to_config(self) -> dict[str, Any]:
        """The section `tuning` of a bundle's config.json, where λ is called `weight`."""
        return {"weight" if name == "lambda_reg" else name: value for name, value in asdict(self).items()}

    @classmethod
    def from_config(cls, section: Mapping[str, Any]) -> Hyperparameters:
        """What `to_config` made. Raises `UserError`, which names the entry, if one is unknown, missing or wrong."""
        given = {"lambda_reg" if name == "weight" else name: value for name, value in section.items()}
        try:
            config.check_settings("tuning", given, cls)
            return cls(**given)
        except UserError as error:
            raise UserError(str(error).replace("lambda_reg", "weight")) from None


@dataclass(frozen=True)
class Info:
    """How a reconstruction went: one entry an image, or plain values for a single picture."""

    status: Status | list[Status]
    steps: int | list[int]
    # f(x) at the end, of pictures in [0, 1]; None if the regularizer has no energy
    energy: float | list[float] | None
    residual: float | list[float]  # ‖proposal − x‖ / ‖x‖ at the end
    misfit: float | list[float]  # ‖A x − y‖ / ‖y‖ at the end
    seconds: float  # for all of them
    data_range: float | list[float]  # the value of white that y was divided by, and the picture multiplied


@dataclass(frozen=True, eq=False)
class Model:
    """A problem, a regularizer trained for it, and the numbers between them."""

    problem: Problem
    regularizer: Regularizer
    hyperparameters: Hyperparameters
    description: Mapping[str, Any]  # how `regularizers.make` builds the regularizer: name and network
    metadata: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "float32"  # of the rough part of a solve, see `elder.backend`
    validation_batch: int = 1  # images that `validate` and `tune` solve for at once

    @property
    def device(self) -> torch.device:
        """Where the regularizer's weights are, and so where solves run."""
        return next(self.regularizer.parameters()).device

    def on(self, compute: Compute) -> Model:
        """This model on the device of `compute`, with its precision and its number of images at once."""
        placed = copy.deepcopy(self.regularizer).to(compute.device)
        return replace(self, regularizer=placed, precision=compute.precision, validation_batch=compute.validation_batch)

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

    def solve(self, operator: Operator, y: Tensor, *, time_limit: float = math.inf) -> Solution:
        """The fixed point that the problem's initial guess leads to: for an energy, a minimum of f.

        Computed on the model's device, and returned on that of y. time_limit: in seconds, after which the solve stops
        with what it has.
        """
        placed, there = operator.to(self.device), y.to(self.device)
        return fixed_point(
            self.objective(placed, there),
            self.problem.initial(placed, there),
            torch.tensor(self.hyperparameters.step),
            tol=self.hyperparameters.tol,
            max_steps=self.hyperparameters.max_steps,
            precision=self.precision,
            time_limit=time_limit,
        ).to(y.device)

    def iterates(self, operator: Operator, y: Tensor) -> Iterator[Iterate[History]]:
        """The iterates of the solve for y without an end, from the initial guess; on the model's device."""
        placed, there = operator.to(self.device), y.to(self.device)
        start = self.problem.initial(placed, there)
        return path(self.objective(placed, there), start, torch.tensor(self.hyperparameters.step))

    def reconstruct(
        self,
        y: Any,
        *,
        data_range: float | Literal["auto"] = 1.0,
        time_limit: float = math.inf,
        **operator_arguments: Any,
    ) -> tuple[Any, Info]:
        """The picture behind the measurement y, and how the solve went.

        Args:
            y: an array or tensor (h, w), (c, h, w) or (b, c, h, w) in the problem's measurement space.
            data_range: the value of white in the picture behind y. y is divided by it, and the picture multiplied, so
                that models see pictures in [0, 1], as in training. auto: the value that `level` finds for each image.
            time_limit: in seconds. A solve that reaches it stops after the step that it is in: the picture is that of
                its last step, and its status `time_limit`.
            operator_arguments: what the problem needs besides, `mask` for csmri; see `Problem.operator_arguments`.

        Returns:
            The picture, as an array for an array, with the rank of y; and an `Info`. Warns if the initial guess lies
            far from [0, data_range].

        Raises:
            UserError: if y does not fit the problem, or the regularizer's number of colors, or if the problem knows no
                operator argument of that name.
        """
        tensor = y if isinstance(y, Tensor) else torch.from_numpy(_single_precision(y))
        if tensor.ndim not in (2, 3, 4):
            raise UserError(f"a measurement must be (h, w), (c, h, w) or (b, c, h, w); got {tuple(tensor.shape)}")
        if tensor.numel() == 0:
            raise UserError(f"a measurement must hold values; got an empty one, {tuple(tensor.shape)}")
        if not time_limit > 0:
            raise UserError(f"time_limit={time_limit} must be a positive number of seconds")
        added = 4 - tensor.ndim
        tensor = tensor[(None,) * added]
        tensor = tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)
        start = time.perf_counter()
        self.problem.check_arguments(operator_arguments)
        try:
            operator, tensor = self.problem.accept(tensor, **operator_arguments)
            operator.check(tensor)
            initial = self.problem.initial(operator, tensor)
            if initial.shape[1] != self.channels:
                gray = "give it each channel by itself, or measure the luminance"
                remedy = gray if self.channels == 1 else "repeat a gray measurement for each channel"
                raise UserError(
                    f"the model's pictures have {self.channels} channel{'s' * (self.channels > 1)}, those of the "
                    f"measurement {initial.shape[1]}: {remedy}"
                )
            white = self._white(level(initial), data_range)
            solution = self.solve(operator, tensor / white, time_limit=time_limit)
            misfit = relative_misfit(operator, solution.x, tensor / white)
        except ValueError as error:
            raise UserError(str(error)) from None
        # What noise of the problem's level leaves: its length, relative to that of y.
        expected = self.problem.noise * math.sqrt(tensor[0].numel()) / norm(tensor / white)
        if bool((misfit > MISFIT + 2 * expected).any()):
            warnings.warn(
                f"the picture explains the measurement badly, with a misfit of {float(misfit.max()):.2g}: was it made "
                "by this operator, in these units?",
                DataWarning,
                stacklevel=2,
            )
        columns = {
            "status": list(solution.status),
            "steps": solution.steps.tolist(),
            "energy": None if solution.energy is None else solution.energy.tolist(),
            "residual": solution.residual.tolist(),
            "misfit": misfit.tolist(),
            "data_range": white.flatten().tolist(),
        }
        single = {name: column and column[0] for name, column in columns.items()} if added else columns
        info = Info(**single, seconds=time.perf_counter() - start)
        x = (solution.x * white)[(0,) * added]
        return (x if isinstance(y, Tensor) else x.numpy()), info

    def _white(self, found: Tensor, data_range: float | str) -> Tensor:
        """The value of white for each image, (b, 1, 1, 1)."""
        if data_range == "auto":
            return torch.where(found > 0, found, 1.0).view(-1, 1, 1, 1)
        held = torch.finfo(torch.float32)
        if not (isinstance(data_range, Real) and held.tiny <= float(data_range) <= held.max):
            raise UserError(f"data_range={data_range!r} must be a positive number that float32 holds, or auto")
        white = float(data_range)
        share = found / white
        odd = share[(share > BRIGHT) | ((share > 0) & (share < DARK))]
        if len(odd):
            warnings.warn(
                f"the picture behind the measurement reaches about {float(odd[0]) * white:.3g}, and data_range is "
                f"{white:g}: is the measurement in other units? Give the value of white as data_range, or auto",
                DataWarning,
                stacklevel=3,
            )
        return torch.full((len(found), 1, 1, 1), white, dtype=found.dtype, device=found.device)

    def override(self, settings: Mapping[str, Any]) -> Model:
        """This model for its problem with some settings changed."""
        return replace(self, problem=self.problem.override(settings))

    def save(self, folder: str | Path) -> None:
        """Write the bundle: `weights.safetensors`, then `config.json`, each whole or not at all.

        A mask or kernel that a setting takes from a file is copied into the bundle, which then loads anywhere.
        """
        written = {
            "problem": {"name": self.problem.name, "settings": self.problem.settings},
            "regularizer": dict(self.description),
            "tuning": self.hyperparameters.to_config(),
            "metadata": dict(self.metadata),
        }
        bundle.write(folder, self.regularizer, written, files=self.problem.file_arrays())


def _single_precision(y: Any) -> np.ndarray:
    """y in float32 or complex64 and the byte order of this machine; what is too large becomes infinite."""
    if np.ma.is_masked(y):
        raise UserError(
            "the measurement is a masked array: give what is missing as the problem takes it, as NaN or a mask"
        )
    array = np.asarray(y)
    if array.dtype.kind not in "biufc":
        raise UserError(f"a measurement must hold numbers; got {array.dtype}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, np.complex64 if array.dtype.kind == "c" else np.float32)


def level(x: Tensor) -> Tensor:
    """The 99.9th percentile of |x| in each image, (b, c, h, w) -> (b,): white, without the few brightest pixels."""
    magnitudes = x.abs().flatten(1)
    return magnitudes.kthvalue(max(1, math.ceil(0.999 * magnitudes.shape[1])), 1).values


def load(folder: str | Path, settings: Mapping[str, Any] | None = None, own_code: str | None = None) -> Model:
    """The model of a bundle folder, some settings of its problem changed.

    own_code: the dotted path of the problem's class if you wrote it: importing it executes its module, so a
    class that a bundle names is imported only if the caller names the same one.
    Warns of a step size with which a residual says nothing.
    Raises `UserError` if there is no model, if it is broken, or if it needs a class that the caller has not named.
    """
    regularizer, written = bundle.read(folder)
    if "problem" not in written:
        raise UserError(f"{folder}: a pre-trained regularizer, which has no problem yet; it is no model")
    own, changed = written["problem"]["settings"].pop("class", None), settings or {}
    if own not in (None, own_code):
        raise UserError(
            f"{folder}: its problem is a class that does not come with elder, {own}, and importing it executes its "
            f"module: if you trust that code, name it by own_code={own!r}, or --own-code {own} on the command line"
        )
    with bundle.reading(folder):
        kind = problems.find(written["problem"]["name"], own)
        kept = {name: value for name, value in written["problem"]["settings"].items() if name not in changed}
        config.check_settings("problem.settings", kept, kind)
        files = bundle.own_files(folder, [name for name in written.get("files", []) if name in kept])
        if own is None:
            config.check_words("problem.settings", {name: kept[name] for name in kept if name not in files})
        problem = kind().override(kept | files)
        hyperparameters = Hyperparameters.from_config(written["tuning"])
    if (length := hyperparameters.lambda_reg * hyperparameters.step) < SHORT:
        warnings.warn(
            f"{folder}: tuning.step times tuning.weight is {length:.1g}, where about 1 is usual: its solves will seem "
            "to have converged wherever they stand",
            DataWarning,
            stacklevel=2,
        )
    model = Model(problem, regularizer, hyperparameters, written["regularizer"], written.get("metadata", {}))
    return model.override(changed)
