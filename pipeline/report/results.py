"""Write the tables of docs/results.md from what `dvc repro` made here: `python -m pipeline.report.results`.

The section for the preset in force takes the place of the one that an earlier run wrote; the rest of the file stays.
Nothing is measured but BM3D, beside `denoise`, where the package is installed: every other number is read from
reports/, models/ and the MLflow store. A training that was interrupted counts from its first start to its end. A cell
whose results are those of other settings, pictures or code counts as one without a result.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elder import command, io, problems
from elder.errors import UserError
from elder.evaluation import bm3d
from elder.evaluation.results import mean
from elder.model import bundle
from elder.problems.samples import Sample, read_all
from pipeline import preset
from pipeline.report import page, tables
from pipeline.report.tables import Method
from pipeline.settings import params
from pipeline.tracking import fingerprints
from pipeline.tracking.freshness import outdated

SOURCES = page.Sources(
    Path("data/prepared"), Path("reports/cells"), Path("reports/baselines"), Path("reports/pretrained")
)
# The stages that make the result of a cell.
BEFORE = ("prepare", "simulate", "baseline", "pretrain", "tune", "finetune", "evaluate")
MEASUREMENTS, MODELS, PRETRAINED = Path("data/measurements"), Path("models"), Path("reports/pretrained")
# Seconds of a stage for a cell or a regularizer, or `None` if no run of it is in the store.
Seconds = Callable[[str], float | None]
# The name of the section of settings that are no preset's.
EDITED = "edited"


@dataclass(frozen=True)
class Column:
    """One column of the main table: its head, and the text of a method."""

    head: str
    text: Callable[[Method], str]


def main() -> None:
    """Write the section of the preset in force, or `edited` if params.yaml was edited since it was chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"), help="docs/results.md by default")
    given = parser.parse_args()

    def work() -> None:
        name = preset.in_force(Path()) or EDITED
        text = section(name, seconds(), stale)
        with io.replacing(given.out) as temporary:
            old = given.out.read_text() if given.out.exists() else "# Results\n"
            temporary.write_text(replaced(old, name, text))
        print(f"wrote the section {name} of {given.out}")

    sys.exit(command.run("results", work))


def replaced(document: str, name: str, text: str) -> str:
    """The document with the section `name` replaced, or appended if it has none."""
    begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
    new = f"{begin}\n{text.strip()}\n{end}"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if pattern.search(document):
        return pattern.sub(lambda found: new, document)
    return f"{document.rstrip()}\n\n{new}\n"


def stale(cells: Sequence[str]) -> set[str]:
    """Those of the cells whose evaluation, or a stage before it, `dvc repro` would run again."""
    chosen = params.read()
    code = fingerprints.manifests(chosen)

    def behind(cell: str) -> dict[str, str]:
        entries = ["", cell, chosen.cells[cell].problem, chosen.cells[cell].regularizer]
        return fingerprints.of_stages(code, BEFORE, entries)

    return {cell for cell in cells if outdated(f"evaluate@{cell}", behind(cell))}


def section(name: str, seconds: Seconds, stale: Callable[[Sequence[str]], set[str]]) -> str:
    """The section of the results that are here. It names the cells that have none yet.

    name: the preset that made them, or `edited`. stale: see `stale`. Raises `UserError` if no cell has a result.
    """
    chosen = params.read()
    there = {cell: how for cell, how in chosen.cells.items() if (SOURCES.cells / cell / "metrics.json").exists()}
    old = stale(list(there))
    done = {cell: how for cell, how in there.items() if cell not in old}
    if not done:
        raise UserError("reports/cells: no result yet of these settings, pictures and code; run dvc repro")
    splits = [image["split"] for image in io.read_json(SOURCES.images / "manifest.json")["images"]]
    counts = ", ".join(f"{splits.count(part)} {part}" for part in dict.fromkeys(splits))
    made = "An edited preset" if name == EDITED else f"`python -m pipeline.preset {name}`"
    parts = [
        f"## {name}",
        f"{made}, `dvc repro`, `python -m pipeline.report.results`; code: "
        f"{page.commit()}. Pictures: {counts}. Means over the test pictures.",
    ]
    if missing := [cell for cell in chosen.cells if cell not in done]:
        parts.append(f"Without a result yet: {', '.join(missing)}.")
    for problem, cells in tables.by_problem(done).items():
        parts += chapter(problem, cells, seconds)
    return "\n\n".join(parts)


def chapter(problem: str, cells: dict[str, str], seconds: Seconds) -> list[str]:
    """The tables of one problem, as paragraphs."""
    chosen = params.read()
    made = problems.make(problem, chosen.problem(problem))
    methods = tables.methods(problem, made.initial_name, cells, SOURCES.cells, SOURCES.baselines)
    told = ", ".join(f"{key} {value}" for key, value in made.settings.items() if key not in ("seed", "class"))
    parts = [f"### {problem}: {told}", main_table(methods)]
    if problem == "denoise":
        parts.append(against_bm3d(made.noise))
    if against := page.against(methods):
        parts.append(f"Explicit against implicit after DEQ training: {against}.")
    if behind := page.behind(methods, SOURCES.pretrained):
        parts.append(f"{behind}.")
    parts += [page.on_the_way(cells, SOURCES.cells), long_table(cells), cost_table(cells, seconds)]
    rows = tables.robustness(cells, SOURCES.baselines / problem, SOURCES.cells)
    if rows:
        parts += [
            "Under changes that are not tuned for:",
            markdown(list(rows[0]), [list(row.values()) for row in rows]),
        ]
    return parts


def main_table(methods: Sequence[Method]) -> str:
    """Every method, before and after DEQ training. D(x*) stands beside x* where a regularizer makes it."""
    columns = [
        Column("PSNR of x* (dB)", lambda m: f"{m.metrics['psnr']:.2f}"),
        Column("SSIM", lambda m: f"{m.metrics['ssim']:.4f}"),
        Column("PSNR of D(x*) (dB)", lambda m: average(m.column("psnr_denoised"), ".2f")),
        Column("gain by DEQ training", lambda m: m.gain),
        Column("steps", lambda m: f"{m.metrics['steps']:.1f}"),
        Column("network evaluations", lambda m: average(evaluations(m), ".1f")),
        Column("converged", lambda m: m.count),
        Column("energy monotone", monotone),
        Column("s a picture", lambda m: f"{m.seconds:.1f}"),
    ]
    rows = [[m.label, *(column.text(m) for column in columns)] for m in methods]
    return markdown(["", *(column.head for column in columns)], rows)


def average(values: Sequence[float], form: str) -> str:
    """The mean in the form given; empty if there are no values."""
    return f"{sum(values) / len(values):{form}}" if values else ""


def evaluations(method: Method) -> list[float]:
    """How often each solve evaluated the network; empty for a baseline."""
    return [float(row["evaluations"]) for row in method.rows if row["evaluations"]]


def monotone(method: Method) -> str:
    """In how many solves the energy never rose, "3 of 4"; empty for a method without an energy."""
    judged = [row["monotone"] for row in method.rows if row["monotone"]]
    return f"{judged.count('True')} of {len(judged)}" if judged else ""


def long_table(cells: Mapping[str, str]) -> str:
    """PSNR at a tenth of evaluate.long_steps, the number of steps of training, and at all of them."""
    chosen, rows = params.read().evaluate, []
    for cell, regularizer in cells.items():
        for row in tables.read(SOURCES.cells / cell / "long.csv"):
            phase = {"pretrained": "pre-trained", "finetuned": "DEQ"}[row["method"]]
            tenth, whole = float(row["psnr_tenth"]), float(row["psnr_all"])
            name = f"{regularizer.replace('_', ' ')}, {phase}"
            rows.append([name, f"{tenth:.2f}", f"{whole:.2f}", f"{whole - tenth:+.2f}"])
    steps, images = chosen.long_steps, chosen.long_images
    heads = [f"first {images} pictures", f"after {max(1, steps // 10)} steps (dB)", f"after {steps} (dB)", "change"]
    return markdown(heads, rows)


def cost_table(cells: Mapping[str, str], seconds: Seconds) -> str:
    """What training took: parameters, the time of each stage, and the work of the forward and backward solves."""
    rows = []
    for cell, regularizer in cells.items():
        trained, _ = bundle.read(MODELS / cell)
        curve = tables.read(SOURCES.cells / cell / "finetune.csv")
        work = (sum(float(row.get(name) or 0) for row in curve) for name in ("evaluations", "backward_products"))
        times = (seconds(f"pretrain {regularizer}"), seconds(f"tune {cell}"), seconds(f"finetune {cell}"))
        name, count = regularizer.replace("_", " "), sum(p.numel() for p in trained.parameters())
        rows.append([name, str(count), *map(spelled, times), *(f"{number:.0f}" for number in work)])
    heads = ["", "parameters", "pre-training", "tuning", "DEQ training", "evaluations in DEQ training", "products"]
    return markdown(heads, rows)


def spelled(seconds: float | None) -> str:
    """A duration in minutes; empty if it is unknown."""
    return "" if seconds is None else f"{seconds / 60:.1f} min"


def against_bm3d(noise: float) -> str:
    """BM3D on the same noisy pictures, computed now; or why it is not."""
    if not bm3d.available():
        return "BM3D is left out: the package `bm3d` is not installed (`pip install elder[bench]`)."
    samples = test_samples("denoise")
    found = [result.metrics for result in bm3d.evaluate_bm3d(samples, noise)]
    psnr, ssim, time = (mean(found)[key] for key in ("psnr", "ssim", "seconds"))
    return f"BM3D on the same noisy pictures: {psnr:.2f} dB, SSIM {ssim:.4f}, {time:.1f} s a picture."


def test_samples(problem: str) -> Sequence[Sample]:
    """The test measurements of a problem, with their truths."""
    made = problems.make(problem, params.read().problem(problem))
    paths = io.list_sources(SOURCES.images / "test")
    truths = [io.to_tensor(io.read_image(path)) for path in paths]
    return read_all(MEASUREMENTS / problem / "test", made, [path.stem for path in paths], truths)


def seconds() -> Seconds:
    """How long the last finished run of a stage on these pictures and measurements took, by its name.

    From the MLflow store, if there is one.
    """
    try:
        from pipeline import runs
        from pipeline.tracking import experiments

        client, experiment = experiments.open_existing()
    except (ImportError, UserError):
        return lambda name: None
    here = {
        path.name: fingerprints.content_hash(path)[: experiments.DIGEST]
        for path in (SOURCES.images, *MEASUREMENTS.glob("*"))
    }
    found: dict[str, float] = {}
    for run in runs.every(client, experiment, "attributes.status = 'FINISHED'"):
        name = run.data.tags.get("cell", "")
        read = {given.dataset.name: given.dataset.digest for given in (run.inputs.dataset_inputs if run.inputs else [])}
        if run.info.end_time is not None and read.items() <= here.items():
            found.setdefault(name, (run.info.end_time - run.info.start_time) / 1000)
    return found.get


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
