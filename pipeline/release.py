"""Put a trained bundle into the package: `python -m pipeline.release models/csmri-least_squares csmri-brain ...`.

Writes elder/released/NAME: the weights, the configuration, what its problem reads from files, and a card with data,
terms, recipe and metrics. Weights are stored in half precision if that costs less than 0.01 dB on the pictures given,
else in float32. Run it where the bundle was trained, with no changed code. The card names the commit, and the settings
of params.yaml if DVC says that they trained the bundle.

A denoiser is best released after `tune`, from models/tuned/CELL: `elder reconstruct` solves to the end, and the λ and σ
that suit the end of a solve are not those of one step.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from elder import command, io, problems, released
from elder.cli import setting
from elder.errors import DataWarning, UserError
from elder.evaluation.evaluate import evaluate
from elder.evaluation.results import mean, succeeded
from elder.model import bundle, model
from elder.problems.samples import measure
from elder.regularizers.base import Regularizer
from elder.training.pretrain import denoising_psnr
from pipeline import preset
from pipeline.settings import params
from pipeline.tracking import fingerprints
from pipeline.tracking.freshness import outdated

# Sections of params.yaml that say how a model was trained.
RECIPE = ("problems", "network", "prepare", "pretrain", "tune", "finetune")
LARGEST = 5 * 2**20  # bytes of a released model
LOSS = 0.01  # dB that half precision may cost
# A pre-trained regularizer has no problem yet. It is released as what it was trained for: a denoiser, whose λ and σ are
# those of one step.
LEVEL = 0.1
DENOISER = {
    "problem": {"name": "denoise", "settings": {"noise": LEVEL}},
    "tuning": {"weight": 1.0, "sigma": LEVEL, "step": 1.0},
}
# The stages behind the bundles of a folder, the last one of which makes them.
MADE_BY = {
    "models/pretrained": ("prepare", "pretrain"),
    "models/tuned": ("prepare", "simulate", "pretrain", "tune"),
    "models": ("prepare", "simulate", "pretrain", "tune", "finetune"),
}
PRECISIONS = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Card:
    """What the person who releases a model knows of it."""

    about: str  # what it is for
    data: str  # the pictures that it was trained on
    terms: str  # of these pictures, as their origin states them


@dataclass(frozen=True)
class Measured:
    """What a stored model reaches on the pictures given."""

    psnr: float  # mean, in dB, where solves end; of a pre-trained regularizer that of one step
    converged: float | None  # share of the solves; None for a pre-trained regularizer, which solves nothing
    one_step: float | None  # mean of x − ∇h(x, σ), in dB at σ = LEVEL; None if the problem is not denoising


def main() -> None:
    """Write the released model and its card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="the folder of the trained bundle")
    parser.add_argument("name", help="the name that follows `released:`")
    parser.add_argument("--about", required=True, help="what the model is for, in one sentence")
    parser.add_argument("--data", required=True, help="the pictures that it was trained on")
    parser.add_argument("--terms", required=True, help="the terms of these pictures, as their origin states them")
    text = "clean pictures on which both precisions are measured; data/prepared/validation by default"
    parser.add_argument("--images", type=Path, default=Path("data/prepared/validation"), metavar="DIR", help=text)
    parser.add_argument("--limit", type=int, default=8, metavar="N", help="the first N of them only; 8 by default")
    text = (
        "a setting of the problem in the place of the bundle's, may be repeated: mask=radial, if its file is not yours"
    )
    parser.add_argument("--set", action="append", default=[], type=setting, metavar="KEY=VALUE", help=text)
    parser.add_argument("--replace", action="store_true", help="take the place of a released model of this name")
    given = parser.parse_args()

    def work() -> None:
        if (released.FOLDER / given.name).exists() and not given.replace:
            raise UserError(f"{given.name}: there is such a released model; --replace puts this one in its place")
        names, images = _pictures(given.images, given.limit)
        card = Card(given.about, given.data, given.terms)
        facts = release(given.bundle, given.name, card, names, images, dict(given.set))
        told = ", ".join(f"{kind} {value:.3f} dB" for kind, value in facts["measured"].items())
        print(f"{told}: stored in {facts['precision']}, {facts['bytes'] / 2**20:.2f} MB")
        print(f"wrote {released.FOLDER / given.name}")

    sys.exit(command.run("release", work))


def release(
    source: Path,
    name: str,
    card: Card,
    names: Sequence[str],
    images: Sequence[Tensor],
    changes: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, Any]:
    """Write elder/released/`name`, whole or not at all, and return the facts of its card.

    names, images: clean pictures (1, c, h, w) on which both precisions are measured. changes: settings of the problem
    in the place of the bundle's.
    Warns if it is not known which settings trained the bundle. Raises `UserError` for a name that is no plain folder
    name, a changed working tree, a bundle that differs from what params.yaml would train, a problem whose class does
    not come with elder, an unknown setting, or a model that is too large.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise UserError(f"{name!r} is no name of a released model: use small letters, digits, - and _")
    regularizer, config = bundle.read(source)
    config = {**DENOISER, **{key: value for key, value in config.items() if key != "format"}}
    if own := config["problem"]["settings"].get("class"):
        raise UserError(f"{source}: its problem is {own}, a class that does not come with elder; it can't be released")
    config = _with(changes, config)
    commit, recipe = _commit(), _recipe(params.raw(), config) if _made_here(source) else None
    released.FOLDER.mkdir(exist_ok=True)
    # On the file system of the package, so that one rename puts the whole folder in its place.
    with tempfile.TemporaryDirectory(dir=released.FOLDER.parent, prefix=".released-") as made:
        folders = {kind: Path(made) / kind for kind, dtype in PRECISIONS.items() if _holds(dtype, regularizer)}
        for kind, folder in folders.items():
            _write(folder, source, regularizer, config, PRECISIONS[kind])
        measured = {kind: _measure(folder, names, images) for kind, folder in folders.items()}
        chosen = min(measured, key=lambda kind: (measured[kind].psnr <= measured["float32"].psnr - LOSS, kind))
        folder, result = folders[chosen], measured[chosen]
        facts = {
            **vars(card),
            "commit": commit,
            "preset": None if recipe is None else preset.in_force(Path()),
            "parameters": sum(p.numel() for p in regularizer.parameters()),
            "precision": chosen,
            "bytes": sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".json"),
            **vars(result),
            "pictures": len(images),
            "measured": {kind: found.psnr for kind, found in measured.items()},
        }
        if facts["bytes"] > LARGEST:
            size, most = (f"{count / 2**20:.1f} MB" for count in (facts["bytes"], LARGEST))
            raise UserError(f"{name}: {size} in {chosen}; a released model has {most} at most: take a smaller network")
        described = {**config, "metadata": {**config.get("metadata", {}), "card": facts}}
        _write(folder, source, regularizer, described, PRECISIONS[chosen])
        (folder / "card.md").write_text(_card(name, described, recipe))
        shutil.rmtree(released.FOLDER / name, ignore_errors=True)
        folder.rename(released.FOLDER / name)
    return facts


def _with(changes: Mapping[str, object], config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with settings of its problem changed. A file that a changed setting named is left behind."""
    problem, files = config["problem"], config.get("files", [])
    known = {key: value for key, value in problem["settings"].items() if key not in files}
    typed = problems.make(problem["name"], known).override(changes).settings
    changed = {**problem["settings"], **{key: typed[key] for key in changes}}
    kept = {"files": [name for name in files if name not in changes]} if "files" in config else {}
    return {**config, "problem": {**problem, "settings": changed}, **kept}


def _holds(dtype: torch.dtype, regularizer: Regularizer) -> bool:
    """Whether every weight is finite in `dtype`: half precision ends at 65504."""
    return all(bool(value.to(dtype).isfinite().all()) for value in regularizer.state_dict().values())


def _write(folder: Path, source: Path, regularizer: Regularizer, config: Mapping[str, Any], dtype: torch.dtype) -> None:
    """The bundle with its weights in `dtype`, and the masks and kernels that the source holds."""
    paths = bundle.own_files(source, config.get("files", []))
    files = {setting: np.load(path, allow_pickle=False) for setting, path in paths.items()}
    bundle.write(folder, regularizer, config, dtype=dtype, files=files)


def _measure(folder: Path, names: Sequence[str], images: Sequence[Tensor]) -> Measured:
    """What the bundle reaches as it is stored: where its solves end, and by one step if it is a denoiser."""
    stored = model.load(folder)
    step = denoising_psnr(stored.regularizer, images, LEVEL) if stored.problem.name == "denoise" else None
    if step is not None and stored.metadata.get("stage", "pretrain") == "pretrain":
        return Measured(step, None, step)
    results = [result.metrics for result in evaluate(stored, measure(stored.problem, names, images))]
    return Measured(mean(results)["psnr"], succeeded(results), step)


def _pictures(folder: Path, limit: int) -> tuple[list[str], list[Tensor]]:
    """Names and pictures of a folder that `prepare` wrote, or of any other."""
    if limit < 1:
        raise UserError(f"--limit {limit}: must be at least 1")
    paths = io.list_sources(folder)[:limit]
    return [path.stem for path in paths], [io.to_tensor(io.read_image(path)) for path in paths]


def _commit() -> str:
    # Other models may have been released before, and a preset may be in force.
    code = ["elder", "pipeline", "stages", "presets", ":!elder/released", ":!presets/default.yaml"]
    changed = subprocess.run(["git", "status", "--porcelain", "--", *code], capture_output=True, text=True)
    if changed.returncode or changed.stdout:
        raise UserError("the code differs from the last commit, so the card could not say which code trained it")
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def _made_here(source: Path) -> bool:
    """Whether params.yaml and the code of this project trained the bundle; warns if it is no output of the project.

    Raises `UserError` if `dvc repro` would train it again, or if DVC can't tell.
    """
    chosen, folder, entry = params.read(), source.resolve().parent, source.resolve().name
    stages = next((stages for place, stages in MADE_BY.items() if folder == Path(place).resolve()), None)
    if stages is None or entry not in (chosen.regularizers if stages[-1] == "pretrain" else chosen.cells):
        message = f"{source}: no output of this project, so the card does not say by which settings it was trained"
        warnings.warn(message, DataWarning, stacklevel=2)
        return False
    cell = chosen.cells.get(entry)
    entries = ["", entry, *(() if cell is None else (cell.problem, cell.regularizer))]
    code, target = fingerprints.of_stages(fingerprints.manifests(chosen), stages, entries), f"{stages[-1]}@{entry}"
    if again := ", ".join(outdated(target, code)):
        raise UserError(
            f"{source}: the present settings, data and code would train another one, or are not all here ({again} "
            f"would run again): dvc repro {target}"
        )
    return True


def _recipe(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The settings of the training as YAML: those of the stages, and of the cells like this model."""
    problem, kind = config["problem"]["name"], config["regularizer"]["name"]
    cells = {
        name: cell
        for name, cell in settings["cells"].items()
        if (cell["problem"], cell["regularizer"]) == (problem, kind)
    }
    own: dict[str, Any] = {"cells": cells} if cells else {}
    if kind in settings["regularizers"]:
        own["regularizers"] = {kind: settings["regularizers"][kind]}
    shared = {key: settings[key] for key in RECIPE}
    shared["problems"] = {problem: settings["problems"][problem]} if problem in settings["problems"] else {}
    return yaml.safe_dump(own | shared, sort_keys=False, allow_unicode=True)


def _card(name: str, config: Mapping[str, Any], recipe: str | None) -> str:
    facts, problem = config["metadata"]["card"], config["problem"]
    metadata = {key: value for key, value in config["metadata"].items() if key != "card"}
    kind = problems.find(problem["name"], None)
    step = "one step, x − ∇h(x, σ)"
    how = step if facts["converged"] is None else f"{facts['converged']:.0%} of the solves converged"
    denoiser = facts["converged"] is not None and facts["one_step"] is not None
    return CARD.format(
        name=name,
        problem=f"{problem['name']}, {_flow(problem['settings'])}",
        arguments=", ".join(kind.operator_arguments) or "none",
        regularizer=_flow(config["regularizer"]),
        how=how,
        one_step=f"- By {step}, at σ = {LEVEL:g}: {facts['one_step']:.2f} dB on these pictures.\n" if denoiser else "",
        recipe=UNKNOWN if recipe is None else SETTINGS.format(command=_command(facts["preset"]), recipe=recipe),
        metrics=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
        both=", ".join(f"{value:.3f} dB in {kind}" for kind, value in facts["measured"].items()),
        **{key: facts[key] for key in ("about", "data", "terms", "commit", "parameters", "precision", "bytes")},
        **{key: facts[key] for key in ("psnr", "pictures")},
    )


def _command(name: str | None) -> str:
    return "" if name in (None, "default") else f"`python -m pipeline.preset {name}`, then `dvc repro`. "


def _flow(settings: Mapping[str, Any]) -> str:
    """Settings as YAML in one line."""
    return yaml.safe_dump(settings, default_flow_style=True, width=10**6).strip()


CARD = """# {name}

{about}

- Load it: `elder.load("released:{name}")`.
- Use it on a file: `elder reconstruct released:{name} --measurement y.npz --out x.png`.
- Problem: {problem}. Arguments of the operator: {arguments}.
- Regularizer: {regularizer}.
- Parameters: {parameters}, stored in {precision} ({bytes} bytes).
- PSNR: {psnr:.2f} dB on {pictures} validation pictures; {how}. Both precisions: {both}.
{one_step}- Data: {data}
- Terms of the data: {terms}
- Code: commit {commit}, from which it was released; its training may have begun at an earlier one.

## Recipe

{recipe}

## Metrics

What the training measured, on its own validation pictures:

```yaml
{metrics}```
"""

SETTINGS = """{command}The settings of the training, from params.yaml:

```yaml
{recipe}```"""

UNKNOWN = "Not known: the bundle was no output of the project that it was released from."


if __name__ == "__main__":
    main()
