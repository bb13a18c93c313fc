"""What a registered version carries, so that it loads where nobody has this project: code, requirements, signature."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array

from elder.errors import UserError
from elder.problems import Problem
from elder.problems.samples import Sample, measure
from elder.shapes import Size

CODE = Path(__file__).with_name("served_model.py")
SERVED = f"{__package__}.{CODE.stem}"
# What the library imports, and what MLflow needs to look a version up in a SQLite store or on a server, to load it and
# to serve it. The whole of MLflow would bring four times as many packages.
REQUIRED = ("torch", "numpy", "scikit-image", "safetensors", "jaxtyping")
LOADED_BY = ("mlflow-skinny", "pandas", "sqlalchemy", "alembic")
# The side of the input example, if the problem can measure pictures of this size.
SMALL = 32
# What `served_model.py` takes; if `None`, the model's own value counts.
PARAMS = (
    ("tol", DataType.double, None),
    ("max_steps", DataType.long, None),
    ("lambda_scale", DataType.double, 1.0),
    ("time_limit", DataType.double, None),
    ("details", DataType.boolean, False),
)


@dataclass(frozen=True, eq=False)
class Interface:
    """How a served model is asked for pictures: what it takes, and how that is read."""

    signature: ModelSignature
    example: dict[str, np.ndarray]
    config: dict[str, Any]  # for `served_model.py`: whether measurements are complex; arguments that are (h, w)


@contextmanager
def contents(problem: Problem, bundle: Path, channels: int, size: Size) -> Iterator[dict[str, Any]]:
    """What `mlflow.pyfunc.log_model` and `save_model` take, for a model that needs nothing but its own requirements.

    channels, size (h, w): of the pictures that the model was validated on.
    """
    asked = interface(problem, channels, size)
    with carried_code(problem) as code:
        yield {
            "python_model": str(CODE),
            "artifacts": {"bundle": str(bundle)},
            "code_paths": [str(path) for path in sorted(code.iterdir())],
            "pip_requirements": requirements(),
            "signature": asked.signature,
            "input_example": asked.example,
            "model_config": {**asked.config, "own_code": problem.own_code},
        }


def code_hash(manifest: str) -> str:
    """A hash of the code that a version carries, from the manifest of the stage that registers it.

    Of the modules there, those of the pipeline and its stages stay behind, all but the one that serves.
    """
    carried = [
        line
        for line in manifest.splitlines()
        if (name := line.split(maxsplit=1)[1]) == SERVED or name.partition(".")[0] not in ("pipeline", "stages")
    ]
    return hashlib.sha256("\n".join(carried).encode()).hexdigest()[:16]


def requirements() -> list[str]:
    """The packages that inference needs, at the versions that are installed here.

    A local version such as 2.13.0+cpu is on few indexes, so torch is pinned without it.
    """
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in (*REQUIRED, *LOADED_BY)]


@contextmanager
def carried_code(problem: Problem) -> Iterator[Path]:
    """A folder of the library's modules, and those of a problem that the user wrote. It is gone after the block.

    Modules alone: no released weights, and no data that lie beside a problem.
    """
    packages = dict.fromkeys(("elder", type(problem).__module__.partition(".")[0]))
    with TemporaryDirectory() as folder:
        for package in packages:
            spec = importlib.util.find_spec(package)
            assert spec is not None
            if spec.submodule_search_locations is None:
                assert spec.origin is not None
                shutil.copy(spec.origin, folder)
            for location in spec.submodule_search_locations or ():
                _copy_modules(Path(location), Path(folder) / package)
        yield Path(folder)


def _copy_modules(source: Path, target: Path) -> None:
    for module in source.rglob("*.py"):
        copy = target / module.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, copy)


def interface(problem: Problem, channels: int, size: Size) -> Interface:
    """The signature of the served model, an example that goes through it, and what the model has to know of both.

    The arrays of one name may be single or a batch, and one mask may serve all images, so the signature leaves their
    shapes open, and the model checks them. It checks too that the measurement is there, and what the problem can't do
    without: to MLflow these are optional, and so the message is the model's.

    An argument whose default would take its place without a word, such as the angles of ct, must be named, and be null
    for the default: MLflow drops inputs that the signature does not name, so a misspelled one would go unnoticed.
    An array that the bundle holds, such as a mask that all training pictures shared, may be left out.
    """
    sample = _example(problem, channels, size)
    arrays = problem.export(sample.operator, sample.y)
    y, held = arrays.pop("y"), problem.file_arrays()
    inputs: list[ColSpec | TensorSpec] = [ColSpec(Array(AnyType()), "measurement", required=False)]
    for name, value in arrays.items():
        named = name not in held and _has_default(problem, sample, arrays, name)
        inputs.append(ColSpec(AnyType() if named or not value.ndim else Array(AnyType()), name, required=named))
    pictures = (-1,) * 3 if channels == 1 else (-1, channels, -1, -1)
    signature = ModelSignature(
        Schema(inputs),
        Schema([TensorSpec(np.dtype("float32"), pictures)]),
        ParamSchema([ParamSpec(name, kind, default) for name, kind, default in PARAMS]),
    )
    planes = [name for name, a in arrays.items() if a.ndim == 2 or (a.ndim == 4 and a.shape[1] == 1)]
    config = {"complex": bool(np.iscomplexobj(y)), "planes": planes}
    return Interface(signature, served_inputs(problem, sample), config)


def _has_default(problem: Problem, sample: Sample, arguments: Mapping[str, np.ndarray], name: str) -> bool:
    """Whether the problem makes an operator without the argument of that name."""
    try:
        problem.bind(sample.y, **{key: value for key, value in arguments.items() if key != name})
    except ValueError:
        return False
    return True


def served_inputs(problem: Problem, sample: Sample) -> dict[str, np.ndarray]:
    """A measurement as the served model takes it: gray without an axis for color, complex as a last axis of two."""
    arrays = problem.export(sample.operator, sample.y)
    y = arrays.pop("y")
    y = y[:, 0] if y.shape[1] == 1 else y
    measurement = np.stack([np.real(y), np.imag(y)], -1) if np.iscomplexobj(y) else y
    arguments = {name: value.squeeze() for name, value in arrays.items()}
    return {"measurement": measurement.astype(np.float32), **arguments}


def _example(problem: Problem, channels: int, size: Size) -> Sample:
    """The measurement of a disk: pictures that were trained on may be confidential."""
    chosen = (SMALL, SMALL)
    try:
        problem.check_size(chosen)
    except UserError:
        chosen = size
    h, w = (torch.linspace(-1, 1, n) for n in chosen)
    disk = ((h.square().unsqueeze(1) + w.square()) < 0.5).float().expand(1, channels, *chosen)
    return measure(problem, ["example"], [0.2 + 0.6 * disk])[0]
