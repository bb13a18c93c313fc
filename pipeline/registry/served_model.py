"""The model as MLflow stores it: this code, and the bundle as an artifact. No pickle."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

import elder
from elder import UserError
from elder.solvers import Status

# Where MLflow's server leaves the seconds after which it gives up on a request. Nobody waits for a solve beyond them.
SERVER_TIMEOUT = "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"


class Reconstruction(PythonModel):
    """Pictures from measurements.

    Input: arrays by name. `measurement`: (h, w), or a batch (b, h, w); in color (3, h, w) or (b, 3, h, w). Where the
    problem measures complex numbers, it is a complex array, or has a last axis of real and imaginary part. Null marks
    a pixel that is missing. Further arrays are arguments of the operator, for csmri `mask`: one for all images, (h, w),
    or one for each, (b, h, w). Null stands for the default of the problem.

    Params, each with the model's own value as default: `tol`, `max_steps`, `lambda_scale` (a factor on λ), `time_limit`
    (seconds, after which the picture of the last step is returned), `details`.

    Output: float32 in [0, 1], (h, w) for a single measurement, else (b, h, w), colors before h. With `details` a
    dictionary of it as `picture`, and `energy` (null if the regularizer has none), `steps`, `status` and `misfit`, with
    one entry for each image of a batch. A picture that is not finite is an error.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle of the version, and import the class of a problem that the user wrote, if there is one.

        Whoever loads a version in this way executes code of it, this file, anyway; `elder.load` executes none.
        """
        config: Mapping[str, Any] = context.model_config or {}
        self.model = elder.load(context.artifacts["bundle"], own_code=config.get("own_code"))
        self.complex: bool = config["complex"]  # whether measurements are
        self.planes: list[str] = config["planes"]  # arguments of the operator that are (h, w) for one image

    # MLflow reads most type hints here as a schema of its own, and warns if there is none. That of a table is let be.
    def predict(self, context, model_input: pd.DataFrame, params=None):
        """Reconstruct one measurement or a batch. Raises `MlflowException`, 400 of a server, for a bad request."""
        try:
            return self._reconstruct(_by_name(model_input), params or {})
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def _reconstruct(self, inputs: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
        arrays = {name: _array(name, value) for name, value in inputs.items() if value is not None}
        if "measurement" not in arrays:
            raise UserError("measurement is missing: the inputs are measurement and what the operator needs besides")
        y, single = self._batch(arrays.pop("measurement"))
        arguments: dict[str, Any] = {name: self._argument(name, value, len(y)) for name, value in arrays.items()}
        x, info = self._adjusted(params).reconstruct(y, time_limit=_time_limit(params), **arguments)
        statuses = cast("list[Status]", info.status)
        for index, status in enumerate(statuses):
            if status is Status.NOT_FINITE:
                raise UserError(f"{'' if single else f'image {index}: '}the picture is not finite: {status.advice}")
        pictures = (x[:, 0] if self.model.channels == 1 else x).clip(0, 1).astype(np.float32)
        if not params.get("details"):
            return pictures[0] if single else pictures
        columns = {
            "picture": pictures,
            "energy": info.energy,
            "steps": info.steps,
            "status": [status.value for status in statuses],
            "misfit": info.misfit,
        }
        return {name: None if column is None else column[0] for name, column in columns.items()} if single else columns

    def _batch(self, y: np.ndarray) -> tuple[np.ndarray, bool]:
        """The measurement as (b, c, ...), and whether it was that of a single picture."""
        if y.size == 0:
            raise UserError("measurement is empty")
        shape, plain = y.shape, 2 if self.model.channels == 1 else 3
        if self.complex and not np.iscomplexobj(y):
            if y.ndim not in (plain + 1, plain + 2) or y.shape[-1] != 2:
                raise UserError(
                    f"measurement is complex for this model: give a last axis of real and imaginary part; got {shape}"
                )
            y = y[..., 0] + 1j * y[..., 1]
        if y.ndim not in (plain, plain + 1):
            one = "(h, w)" if plain == 2 else "(3, h, w)"
            raise UserError(f"measurement must be {one}, or a batch of such; got {shape}")
        single = y.ndim == plain
        y = y[None] if single else y
        return (y[:, None] if plain == 2 else y), single

    def _argument(self, name: str, value: np.ndarray, batch: int) -> np.ndarray:
        """An argument of the operator as the library takes it: (b, 1, h, w) if there is one for each image."""
        if name not in self.planes or value.ndim != 3:
            return value
        if len(value) not in (1, batch):
            raise UserError(f"{name} must be one for all images, or one for each of the {batch}; got {len(value)}")
        return value[:, None]

    def _adjusted(self, params: Mapping[str, Any]) -> elder.Model:
        """The model with the hyperparameters that the request asks for."""
        own = self.model.hyperparameters
        tol, max_steps = _positive(params, "tol", own.tol), _positive(params, "max_steps", own.max_steps)
        lambda_reg = own.lambda_reg * _positive(params, "lambda_scale", 1.0)
        return replace(
            self.model,
            hyperparameters=replace(own, tol=tol, max_steps=int(max_steps), lambda_reg=lambda_reg),
        )


def _by_name(model_input: pd.DataFrame) -> dict[str, Any]:
    """The inputs of one request, which MLflow turns from a dictionary into a table of one row."""
    if len(model_input) != 1:
        raise UserError(f"one request at a time, by `inputs`; got a table of {len(model_input)} rows")
    return dict(zip(model_input.columns, model_input.iloc[0], strict=True))


def _array(name: str, value: Any) -> np.ndarray:
    """The numbers of an input; NaN for null. Text is refused: the library would take it for the name of a file."""
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O":
            array = np.asarray(array.tolist(), dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name} must be an array of numbers, with rows of one length") from None
    if array.dtype.kind not in "biufc":
        raise UserError(f"{name} must be an array of numbers; got {array.dtype}")
    return array


def _positive(params: Mapping[str, Any], name: str, default: float) -> float:
    value = params.get(name)
    if value is None:
        return default
    if not 0 < value < math.inf:
        raise UserError(f"{name}={value} must be a positive number")
    return value


def _time_limit(params: Mapping[str, Any]) -> float:
    """Seconds: what the request asks for, and at most what the server waits."""
    return min(_positive(params, "time_limit", math.inf), float(os.environ.get(SERVER_TIMEOUT) or math.inf))


set_model(Reconstruction())
