"""All results on one page."""

from __future__ import annotations

import base64
import importlib.metadata
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from elder import io, problems
from pipeline import ROOT
from pipeline.report import figures, tables
from pipeline.settings import params

SHOWN = 4  # test images in a panel
BEHIND = 0.1  # dB below the implicit regularizer, of which the page says that an explicit one stays behind
LEVEL = "0.1"  # σ at which the page compares denoisers
TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Sources:
    """The folders that the page is made of: prepared images, and results of cells, baselines and pre-training."""

    images: Path
    cells: Path
    baselines: Path
    pretrained: Path


def write(sources: Sources, out: Path, pictures: Path) -> None:
    """Write the page to the file `out`, and the figures in it also as files below `pictures`."""
    manifest = io.read_json(sources.images / "manifest.json")
    chapters = []
    for problem, mine in tables.by_problem(params.read().cells).items():
        chapters.append(chapter(problem, mine, sources, pictures))
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = template.from_string(TEMPLATE.read_text()).render(
        made="By dvc repro",
        commit=commit(),
        version=importlib.metadata.version("elder"),
        torch=importlib.metadata.version("torch"),
        problems=chapters,
        long_steps=params.read().evaluate.long_steps,
        settings=yaml.safe_dump(params.raw(), sort_keys=False),
        source=manifest["source"],
        images=manifest["images"],
    )
    with io.replacing(out) as temporary:
        temporary.write_text(page)


def chapter(problem: str, cells: Mapping[str, str], sources: Sources, out: Path) -> dict[str, Any]:
    """What the page says of one problem. cells: the regularizer of each cell; out: the folder of the figures."""
    initial = problems.make(problem, params.read().problem(problem)).initial_name
    methods = tables.methods(problem, initial, dict(cells), sources.cells, sources.baselines)
    truths = sorted((sources.images / "test").glob("*.tif"))
    panel(out / f"{problem}-panel.png", problem, cells, truths[:SHOWN], sources, initial)
    curves, training = {}, {}
    for cell, regularizer in cells.items():
        name = regularizer.replace("_", " ")
        rows = tables.read(sources.cells / cell / "convergence.csv")
        for phase in ("pretrained", "finetuned"):
            curves[name, phase] = [row for row in rows if row["method"] == phase]
        training[name] = tables.read(sources.cells / cell / "finetune.csv")
    figures.convergence(out / f"{problem}-convergence.png", curves)
    figures.training(out / f"{problem}-training.png", training)
    verdicts = [io.read_json(sources.cells / cell / "registered.json") for cell in cells]
    return {
        "name": problem,
        "settings": ", ".join(f"{k} {v}" for k, v in params.read().problems[problem].items() if k != "seed"),
        "images": len(truths),
        "methods": methods,
        "early": any(method.stopped_early for method in methods),
        "best": max(methods, key=lambda method: method.metrics["psnr"]),
        "against": against(methods),
        "behind": behind(methods, sources.pretrained),
        "on_the_way": on_the_way(cells, sources.cells),
        "registered": [verdict["told"] for verdict in verdicts],
        "first": truths[0].stem,
        "robustness": tables.robustness(dict(cells), sources.baselines / problem, sources.cells),
        **{part: embedded(out / f"{problem}-{part}.png") for part in ("panel", "convergence", "training")},
    }


def against(methods: list[tables.Method]) -> str:
    """Each explicit regularizer's DEQ row compared with the implicit one's; empty where there is no implicit one."""
    after = tables.tuned(methods)
    implicit = after.pop("implicit", None)
    if implicit is None:
        return ""
    reference = implicit.column("psnr")
    told = {name.replace("_", " "): tables.compared(m.column("psnr"), reference) for name, m in after.items()}
    return "; ".join(f"{name} {difference}" for name, difference in told.items())


def behind(methods: list[tables.Method], pretrained: Path) -> str:
    """Which explicit regularizers stay behind the implicit one after DEQ training, and how good a denoiser each was.

    pretrained: the folder with the results of pre-training. Empty where no regularizer stays behind.
    """
    after = tables.tuned(methods)
    if "implicit" not in after:
        return ""
    least = after["implicit"].metrics["psnr"] - BEHIND
    weaker = [name for name, method in after.items() if method.metrics["psnr"] < least]
    if not weaker:
        return ""
    scores = {
        name: io.read_json(pretrained / name / "metrics.json")["denoising_psnr"][LEVEL]
        for name in (*weaker, "implicit")
    }
    told = ", ".join(f"{name.replace('_', ' ')} {score:.2f} dB" for name, score in scores.items())
    return (
        f"More than {BEHIND:g} dB below the implicit one: {', '.join(weaker).replace('_', ' ')}. "
        f"As denoisers on validation (σ = {LEVEL}), where DEQ training began: {told}"
    )


def on_the_way(cells: Mapping[str, str], folder: Path) -> str:
    """A sentence on validation before DEQ training: each regularizer where solves end, and at best on the way there.

    folder: that of the cells, with the trials of their tuning.
    """
    told = []
    for cell, regularizer in cells.items():
        trials = tables.read(folder / cell / "tune.csv")
        (end,) = [float(trial["psnr"]) for trial in trials if trial["chosen"] == "1"]
        peak, step = max((float(trial["peak_psnr"]), float(trial["peak_step"])) for trial in trials)
        told.append(
            f"{regularizer.replace('_', ' ')} {end:.2f} and {peak:.2f} dB, the latter at step {step:.0f} on average"
        )
    return f"Before DEQ training, on validation, where solves end and at best on the way there: {'; '.join(told)}."


def panel(
    path: Path, problem: str, cells: Mapping[str, str], truths: list[Path], sources: Sources, initial: str
) -> None:
    """Ground truth, baselines, the first cell before DEQ training, and every cell after it."""
    first = next(iter(cells))
    columns = {
        initial: (sources.baselines / problem, "initial"),
        "total variation": (sources.baselines / problem, "total_variation"),
        f"{cells[first].replace('_', ' ')}\nbefore DEQ": (sources.cells / first, "pretrained"),
        **{f"{r.replace('_', ' ')}\nafter DEQ": (sources.cells / c, "finetuned") for c, r in cells.items()},
    }
    shown = {title: captioned(folder, key, truths) for title, (folder, key) in columns.items()}
    figures.panel(path, [io.read_image(truth) for truth in truths], shown)


def captioned(folder: Path, key: str, truths: list[Path]) -> list[tuple[np.ndarray, str]]:
    """The pictures of one method, each with its PSNR."""
    scores = {row["name"]: row["psnr"] for row in tables.read(folder / "images.csv") if row["method"] == key}
    return [
        (io.read_array(folder / "pictures" / key / truth.name), f"{float(scores[truth.stem]):.2f} dB")
        for truth in truths
    ]


def embedded(path: Path) -> str:
    """A PNG file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def commit() -> str:
    """The commit of the code, marked where the code differs from it."""
    command = ["git", "describe", "--always", "--dirty=, with changes", "--abbrev=10"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not in a repository"
