"""The model as MLflow stores it: this code, and the bundle as an artifact. No pickle."""

from __future__ import annotations

from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

import elder


class Reconstruction(PythonModel):
    """Pictures from measurements.

    Input: `measurement`, float32 (b, h, w), color (b, 3, h, w); complex ones with a last axis of real and imaginary
    part. Further tensors are arguments of the operator, for csmri `mask`, (h, w). Output: float32 (b, h, w) in [0, 1],
    color (b, 3, h, w).
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle of the version, and import the class that its registration named for a problem of one's own.

        Whoever loads a version in this way executes code of it, this file, anyway; `elder.load` executes none.
        """
        own_code = (context.model_config or {}).get("own_code")
        self.model = elder.load(context.artifacts["bundle"], own_code=own_code)

    def predict(self, context, model_input, params=None):  # MLflow reads type hints here as a schema of its own
        """Reconstruct a batch of measurements; see `elder.model.model.Model.reconstruct`."""
        inputs: dict[str, Any] = {name: np.asarray(value) for name, value in model_input.items()}
        measurement = inputs.pop("measurement")
        gray = self.model.channels == 1
        if measurement.ndim == (4 if gray else 5):
            measurement = measurement[..., 0] + 1j * measurement[..., 1]
        x, _ = self.model.reconstruct(measurement[:, None] if gray else measurement, **inputs)
        return (x[:, 0] if gray else x).clip(0, 1).astype(np.float32)


set_model(Reconstruction())
