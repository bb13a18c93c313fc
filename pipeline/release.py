"""Put a trained bundle into the package: `python -m pipeline.release models/pretrained/red denoise-red --terms "..."`.

Writes elder/released/NAME: the weights in half precision, the configuration, and a card with data, terms, recipe and
metrics. Run it where the bundle was trained, with that run's params.yaml and a clean working tree: the card names both.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml

from elder import errors, released
from elder.errors import UserError
from elder.model import bundle
from pipeline import params

# Sections of params.yaml that say how a model was trained.
RECIPE = ("prepare", "network", "pretrain", "tune", "finetune")
LARGEST = 5 * 2**20  # bytes
# A pre-trained regularizer has no problem yet. It is released as what it was trained for: a denoiser.
DENOISER = {
    "problem": {"name": "denoise", "settings": {"noise": 0.1}},
    "tuning": {"weight": 1.0, "sigma": 0.1, "step": 1.0},
}


def main() -> None:
    """Write the released model and its card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="the folder of the trained bundle")
    parser.add_argument("name", help="the name that follows `released:`")
    parser.add_argument("--about", required=True, help="what the model is for, in one sentence")
    parser.add_argument("--data", required=True, help="the pictures that it was trained on")
    parser.add_argument("--terms", required=True, help="the terms of these pictures, as their origin states them")
    arguments = parser.parse_args()

    def work() -> None:
        release(arguments.bundle, arguments.name, arguments.about, arguments.data, arguments.terms)
        print(f"wrote {released.FOLDER / arguments.name}")

    sys.exit(errors.run("release", work))


def release(source: Path, name: str, about: str, data: str, terms: str) -> None:
    """Write elder/released/`name`, whole or not at all.

    Raises `UserError` for a name that is no plain folder name, a changed working tree, or weights that are too large.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise UserError(f"{name!r} is no name of a released model: use small letters, digits, - and _")
    regularizer, config = bundle.read(source)
    settings = params.raw()
    with tempfile.TemporaryDirectory() as made:
        released_as = {**DENOISER, **{key: value for key, value in config.items() if key != "format"}}
        bundle.write(made, regularizer, released_as, dtype=torch.float16)
        size = (Path(made) / "weights.safetensors").stat().st_size
        if size > LARGEST:
            raise UserError(f"{name}: {size / 2**20:.1f} MB of weights; at most {LARGEST / 2**20:.0f} MB are released")
        card = CARD.format(
            name=name,
            about=about,
            parameters=sum(p.numel() for p in regularizer.parameters()),
            size=size,
            data=data,
            terms=terms,
            commit=_commit(),
            recipe=yaml.safe_dump({key: settings[key] for key in RECIPE}, sort_keys=False, allow_unicode=True),
            metrics=yaml.safe_dump(config["metadata"], sort_keys=False, allow_unicode=True),
        )
        (Path(made) / "card.md").write_text(card)
        folder = released.FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)


def _commit() -> str:
    changed = subprocess.run(["git", "status", "--porcelain", "elder", "stages"], capture_output=True, text=True)
    if changed.returncode or changed.stdout:
        raise UserError("the code differs from the last commit, so the card could not say which code trained it")
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


CARD = """# {name}

{about}

- Load it: `elder.load("released:{name}")`.
- Parameters: {parameters}, stored in half precision ({size} bytes).
- Data: {data}
- Terms of the data: {terms}
- Code: commit {commit}.

## Recipe

params.yaml of the training:

```yaml
{recipe}```

## Metrics

What the training measured, on its validation pictures:

```yaml
{metrics}```
"""


if __name__ == "__main__":
    main()
