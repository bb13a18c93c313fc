"""All results on one page."""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from elder import files
from elder.problems import PROBLEMS
from pipeline import ROOT, comparison, pictures
from stages import settings

SHOWN = 4  # test images in a panel


def main(arguments: argparse.Namespace) -> None:
    """Write the page with its tables, and the figures in it as files too."""
    cells = {name: settings.cell(name) for name in settings.section("cells")}
    manifest = files.read_json(arguments.images / "manifest.json")
    chapters = []
    for problem in dict.fromkeys(cell.problem for cell in cells.values()):
        mine = {name: cell.regularizer for name, cell in cells.items() if cell.problem == problem}
        chapters.append(chapter(problem, mine, arguments))
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = template.from_string((ROOT / "pipeline" / "report.html").read_text()).render(
        made="By dvc repro",
        commit=commit(),
        version=importlib.metadata.version("elder"),
        torch=importlib.metadata.version("torch"),
        problems=chapters,
        long_steps=settings.section("evaluate")["long_steps"],
        settings=yaml.safe_dump(settings.section(), sort_keys=False),
        source=manifest["source"],
        images=manifest["images"],
    )
    with files.replacing(arguments.out) as temporary:
        temporary.write_text(page)
    print(f"the report: {arguments.out}")


def chapter(problem: str, cells: Mapping[str, str], arguments: argparse.Namespace) -> dict[str, Any]:
    """What the page says of one problem."""
    reports, baselines, figures = arguments.cells, arguments.baselines, arguments.figures
    initial = PROBLEMS[problem].initial_name if problem in PROBLEMS else "initial guess"
    methods = comparison.methods(problem, initial, dict(cells), reports, baselines)
    truths = sorted((arguments.images / "test").glob("*.tif"))
    panel(figures / f"{problem}-panel.png", problem, cells, truths[:SHOWN], arguments, initial)
    curves, training = {}, {}
    for cell, regularizer in cells.items():
        name = regularizer.replace("_", " ")
        rows = comparison.read(reports / cell / "convergence.csv")
        for key, title in (("pretrained", f"{name}, before"), ("finetuned", name)):
            curves[title] = [row for row in rows if row["method"] == key]
        training[name] = comparison.read(reports / cell / "finetune.csv")
    pictures.convergence(figures / f"{problem}-convergence.png", curves)
    pictures.training(figures / f"{problem}-training.png", training)
    verdicts = [files.read_json(reports / cell / "registered.json") for cell in cells]
    return {
        "name": problem,
        "settings": ", ".join(f"{k} {v}" for k, v in settings.section("problems", problem).items() if k != "seed"),
        "images": len(truths),
        "methods": methods,
        "best": max(methods, key=lambda method: method.figures["psnr"]),
        "against": against(methods),
        "registered": [f"{v['name']} version {v['version']} ({v['reason']})" for v in verdicts],
        "first": truths[0].stem,
        "robustness": comparison.robustness(dict(cells), baselines / problem, reports),
        **{part: embedded(figures / f"{problem}-{part}.png") for part in ("panel", "convergence", "training")},
    }


def against(methods: list[comparison.Method]) -> str:
    """Each explicit regulariser's DEQ row compared with the implicit one's."""
    after = {m.title.removesuffix(", DEQ"): m for m in methods if m.title.endswith(", DEQ")}
    implicit = after.pop("implicit", None)
    if implicit is None:
        return ""
    return "; ".join(f"{name} {comparison.compared(m.psnr, implicit.psnr)}" for name, m in after.items())


def panel(
    path: Path, problem: str, cells: Mapping[str, str], truths: list[Path], arguments: argparse.Namespace, initial: str
) -> None:
    """Ground truth, baselines, the first cell before DEQ training, and every cell after it."""
    first = next(iter(cells))
    columns = {
        initial: (arguments.baselines / problem, "initial"),
        "total variation": (arguments.baselines / problem, "total_variation"),
        f"{cells[first].replace('_', ' ')}\nbefore DEQ": (arguments.cells / first, "pretrained"),
        **{f"{r.replace('_', ' ')}\nafter DEQ": (arguments.cells / c, "finetuned") for c, r in cells.items()},
    }
    shown = {title: captioned(folder, key, truths) for title, (folder, key) in columns.items()}
    pictures.panel(path, [files.read_image(truth) for truth in truths], shown)


def captioned(folder: Path, key: str, truths: list[Path]) -> list[tuple[np.ndarray, str]]:
    """The pictures of one method, each with its PSNR."""
    scores = {row["name"]: row["psnr"] for row in comparison.read(folder / "images.csv") if row["method"] == key}
    return [
        (files.read_array(folder / "pictures" / key / truth.name), f"{float(scores[truth.stem]):.2f} dB")
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


if __name__ == "__main__":
    settings.run(main, "images", "cells", "baselines", "out", "figures")
