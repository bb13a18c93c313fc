"""The model card: what a consumer of the registry reads of a version, as its description."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elder import io
from elder.model.model import Model
from elder.regularizers.base import Energy

# Of the pictures that come with packages.
BUILTIN = (
    "of each photograph as data/README.txt of scikit-image, or datasets/images/README.txt of scikit-learn, states it"
)
ENERGY = "at a minimum of the energy ½‖A x − y‖² + λ h(x)"
FIXED_POINT = "at a fixed point of a plug-and-play iteration, which has no energy"
METHODS = {"pretrained": "before DEQ training", "finetuned": "**this model**"}


@dataclass(frozen=True)
class Evidence:
    """What the pipeline knows of a model beside its bundle."""

    manifest: Mapping[str, Any]  # of the prepared pictures: `source`, and `images` with a `split` each
    license: str  # of these pictures; empty if nobody said
    validation_psnr: float  # in dB
    metrics: Mapping[str, Mapping[str, float]]  # on the test pictures, by method: the model, and before DEQ training
    baselines: Mapping[str, Mapping[str, float]]  # the same of the initial guess and total variation


def write(model: Model, evidence: Evidence) -> str:
    """The card of a model, in Markdown."""
    name = f"elder-{model.problem.name}"
    part = model.description.get("network")
    network = f" over {json.dumps(part)}" if part else ""
    numbers = ", ".join(f"{key} {value:.4g}" for key, value in asdict(model.hyperparameters).items())
    return CARD.format(
        problem=model.problem.name,
        how=ENERGY if isinstance(model.regularizer, Energy) else FIXED_POINT,
        regularizer=model.description["name"].replace("_", " "),
        network=network,
        parameters=sum(p.numel() for p in model.regularizer.parameters()),
        settings=json.dumps(model.problem.settings, sort_keys=True),
        numbers=numbers,
        color="gray" if model.channels == 1 else "colored",
        data=_data(evidence),
        license=evidence.license or (BUILTIN if evidence.manifest["source"] == "builtin" else "unknown"),
        validation=evidence.validation_psnr,
        table=_table(model, evidence),
        name=name,
    )


def read(images: Path, validation_psnr: float, metrics: Path, baselines: Path, license: str) -> Evidence:
    """The evidence in the files of the stages `prepare`, `evaluate` and `baseline`."""
    manifest = io.read_json(images / "manifest.json")
    return Evidence(manifest, license, validation_psnr, io.read_json(metrics), io.read_json(baselines))


def _data(evidence: Evidence) -> str:
    splits = [image["split"] for image in evidence.manifest["images"]]
    counts = ", ".join(f"{splits.count(name)} {name}" for name in dict.fromkeys(splits))
    builtin = evidence.manifest["source"] == "builtin"
    source = "photographs of scikit-image and scikit-learn" if builtin else "a folder of pictures"
    return f"{source}: {counts}"


def _table(model: Model, evidence: Evidence) -> str:
    names = {"initial": model.problem.initial_name, "total_variation": "total variation", **METHODS}
    rows = [
        f"| {names[method]} | {row['psnr']:.2f} | {row['ssim']:.4f} |"
        for method, row in {**evidence.baselines, **evidence.metrics}.items()
    ]
    return "\n".join(["| test pictures | PSNR in dB | SSIM |", "|---|---|---|", *rows])


CARD = """# {name}

Recovers {color} pictures in [0, 1] from measurements of `{problem}`, {how}.

- Problem: {settings}. Measurements of other settings are out of its range.
- Regularizer: {regularizer}{network}, {parameters} parameters.
- Hyperparameters: {numbers}.
- Data: {data}.
- License of the data: {license}.
- Validation: {validation:.2f} dB. The champion is chosen by this number. The test pictures chose nothing.

{table}

## Loading it

In an environment made from the version's own requirements.txt:

```python
model = mlflow.pyfunc.load_model("models:/{name}@champion")
x = model.predict({{"measurement": y, ...}})  # and the arguments of the operator, which the signature names
```

Then, or where elder is installed, `elder.load("models:/{name}@champion")` gives the model with its energy and solver.
"""
