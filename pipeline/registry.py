"""The MLflow model registry: versions of `elder-<problem>`, and the gate before the champion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from elder.evaluation.evaluate import evaluate
from elder.evaluation.results import mean
from elder.model.address import load
from elder.problems import Problem
from elder.problems.samples import Sample

CODE = Path(__file__).with_name("served_model.py")


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, and why."""

    name: str
    version: int
    psnr: float
    champion_psnr: float | None  # of the champion before, on the same data
    promoted: bool
    reason: str


def register(
    problem: Problem, bundle: Path, psnr: float, data_hash: str, validation: Sequence[Sample], margin: float
) -> Verdict:
    """A new version of `elder-<problem>` as challenger; champion if it passes the gate.

    The gate: finite on a smoke input through the served model, and better than the champion on the same
    validation measurements by `margin` dB. A champion of other data is evaluated on these first.
    """
    client, name = MlflowClient(), f"elder-{problem.name}"
    example = served_inputs(problem, validation[0])
    version = _log_version(name, bundle, example, validation[0].truth.shape[1])
    client.set_model_version_tag(name, str(version), "psnr", f"{psnr:.4f}")
    client.set_model_version_tag(name, str(version), "data", data_hash)
    client.set_registered_model_alias(name, "challenger", str(version))
    finite = smoke(f"models:/{name}@challenger", example, validation[0].truth.shape[-2:])
    before = _champion_psnr(client, name, data_hash, validation)
    if not finite:
        promoted, reason = False, "not finite on the smoke input"
    elif before is None:
        promoted, reason = True, "the first champion"
    elif psnr >= before + margin:
        promoted, reason = True, f"{psnr - before:+.2f} dB over the champion, at least {margin:g}"
    else:
        promoted, reason = False, f"{psnr - before:+.2f} dB over the champion, less than {margin:g}"
    if promoted:
        client.set_registered_model_alias(name, "champion", str(version))
    return Verdict(name, version, psnr, before, promoted, reason)


def smoke(uri: str, inputs: dict[str, np.ndarray], size: Sequence[int]) -> bool:
    """Whether the served model gives finite pictures of the right size for one measurement."""
    x = mlflow.pyfunc.load_model(uri).predict(inputs)
    return bool(np.isfinite(x).all()) and x.shape[-2:] == tuple(size)


def served_inputs(problem: Problem, sample: Sample) -> dict[str, np.ndarray]:
    """A measurement as the served model takes it: gray without an axis for color, complex as a last axis of two."""
    arrays = problem.export(sample.operator, sample.y)
    y = arrays.pop("y")
    y = y[:, 0] if y.shape[1] == 1 else y
    measurement = np.stack([np.real(y), np.imag(y)], -1) if np.iscomplexobj(y) else y
    arguments = {name: value.squeeze() for name, value in arrays.items()}
    return {"measurement": measurement.astype(np.float32), **arguments}


def _log_version(name: str, bundle: Path, example: dict[str, np.ndarray], channels: int) -> int:
    # Any batch, height and width; the rank, colors, parts of a complex number and dtype are fixed.
    specs: list[ColSpec | TensorSpec] = [
        TensorSpec(value.dtype, tuple(n if n in (2, 3) else -1 for n in value.shape), key)
        for key, value in example.items()
    ]
    pictures = (-1,) * 3 if channels == 1 else (-1, channels, -1, -1)
    info = mlflow.pyfunc.log_model(
        name="model",
        python_model=str(CODE),
        artifacts={"bundle": str(bundle)},
        signature=ModelSignature(Schema(specs), Schema([TensorSpec(np.dtype("float32"), pictures)])),
        registered_model_name=name,
        pip_requirements=["elder"],
    )
    assert info.registered_model_version is not None
    return int(info.registered_model_version)


def _champion_psnr(client: MlflowClient, name: str, data_hash: str, validation: Sequence[Sample]) -> float | None:
    try:
        champion = client.get_model_version_by_alias(name, "champion")
    except MlflowException:
        return None
    if champion.tags.get("data") == data_hash:
        return float(champion.tags["psnr"])
    return mean(evaluate(load(f"models:/{name}@champion"), validation))["psnr"]
