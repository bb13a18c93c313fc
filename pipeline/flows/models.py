"""Flows that use models and train none: the champions on new pictures, and a batch of reconstructions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field

from pipeline import ROOT
from pipeline.flows import flow_runs, notify, process, repository
from pipeline.flows.progress import Progress, drawn
from pipeline.flows.publish import key_of

Seconds = Annotated[float, Field(gt=0)]
# How a solve ends that reached its fixed point, in metrics.json of `elder evaluate`.
SUCCEEDED = ("converged", "precision")
# In the folder of the results: the lock of the run that writes them.
LOCK = ".lock"
# Rows of a table in Prefect's database; the file has all of them.
ROWS = 200


class CommandFailed(RuntimeError):
    """A command ended with an error; its last line says which."""


def run(name: str, command: list[str], folder: Path, timeout: float, *, quiet: bool = False) -> list[str]:
    """The lines of a command of the project; quiet: they are not logged. Raises `CommandFailed` for its last line."""
    show = (lambda line: None) if quiet else Progress(f"progress-{key_of(name)}", name, get_run_logger().info)
    code, lines = process.run(command, show, folder=folder, timeout=timeout)
    told = [line for line in lines if not drawn(line)]
    if code:
        raise CommandFailed(f"{name}: {told[-1] if told else f'exit code {code}'}")
    return told


@task(name="evaluate", task_run_name="evaluate champion of {problem}", cache_policy=NO_CACHE)
def evaluate(
    problem: str, champion: dict[str, Any], images: Path, out: Path, limit: int | None, folder: Path, timeout: float
) -> dict[str, Any]:
    """The row of the drift table of one champion, by `elder evaluate`."""
    command = ["elder", "evaluate", champion["model"], "--images", str(images), "--out", str(out)]
    command += ["--limit", str(limit)] if limit else []
    command += ["--own-code", champion["own_code"]] if champion["own_code"] else []
    run(f"evaluate {problem}", command, folder, timeout)
    report = json.loads((out / "metrics.json").read_text())
    failed = sum(image["status"] not in SUCCEEDED for image in report["images"])
    return row(champion, report["mean"], report["baseline"], len(report["images"]), failed)


def row(
    champion: dict[str, Any], mean: dict[str, Any], baseline: dict[str, Any], images: int, failed: int
) -> dict[str, Any]:
    """How a champion does on new pictures, beside what it did on validation; PSNR in dB."""
    noted = champion["psnr"]
    return {
        "model": champion["model"],
        "images": images,
        "validation PSNR": None if noted is None else round(noted, 2),
        "new PSNR": round(mean["psnr"], 2),
        "change": None if noted is None else round(mean["psnr"] - noted, 2),
        "new SSIM": round(mean["ssim"], 4),
        baseline["name"]: round(baseline["psnr"], 2),
        "gain": round(mean["psnr"] - baseline["psnr"], 2),
        "failed solves": failed,
    }


@flow(name="evaluate-champions", on_failure=[notify.failed], on_crashed=[notify.failed])
def evaluate_champions(
    images: str,
    problems: list[str] = [],  # noqa: B006  Prefect shows the default in its form; it is never changed
    limit: Annotated[int, Field(ge=1)] | None = None,
    drop: Annotated[float, Field(gt=0)] = 3.0,
    out: str = "reports/champions",
    folder: str = str(ROOT),
    timeout: Seconds = 3600.0,
) -> list[dict[str, Any]]:
    """Evaluate the registered champions on a folder of new clean pictures: has the data drifted away from them?

    Each picture is measured as the champion's problem says, and reconstructed. The table compares PSNR with that on
    validation. Pictures of another kind have another PSNR with any method, so it also has the gain over the initial
    guess. If a champion fails, the others are in the table, and the flow fails at its end. A run that writes to the
    same folder is waited for.

    Args:
        images: The folder of clean pictures, searched recursively; relative to the project.
        problems: The problems whose champions are evaluated, such as csmri. Empty: every champion of the registry.
        limit: The first pictures only. Empty: all of them.
        drop: PSNR in dB below validation from which a champion is told as drifted.
        out: Where reconstructions and metrics.json go, one folder for each problem; relative to the project.
        folder: The project, with its params.yaml.
        timeout: Seconds that one champion may take.
    """
    root, log = Path(folder).resolve(), get_run_logger()
    flow_runs.begin(root, log.warning)
    pictures = root / images
    if not pictures.is_dir():
        raise ValueError(f"images: {pictures} is no folder")
    name, results = f"flow run {flow_run.get_name()}", root / out
    with repository.alone(results / LOCK, results, name, log.warning, patience=timeout):
        rows, failures = evaluate_all(problems, pictures, results, limit, root, timeout, drop)
    create_table_artifact(rows, "drift", f"The champions on {pictures}")
    if failures:
        raise CommandFailed("; ".join(failures))
    return rows


def evaluate_all(
    problems: list[str], pictures: Path, out: Path, limit: int | None, root: Path, timeout: float, drop: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the champions of some problems, or of all, and the errors of those that failed; drifts are told."""
    log = get_run_logger()
    command = [sys.executable, "-m", "pipeline.champions"]
    command += [word for problem in problems for word in ("--problem", problem)]
    champions = json.loads(run("champions", command, root, timeout, quiet=True)[-1])
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    for champion in champions:
        problem = champion["problem"]
        try:
            rows.append(evaluate(problem, champion, pictures, out / problem, limit, root, timeout))
        except (CommandFailed, process.TimedOut) as error:
            failures.append(str(error))
            continue
        if (change := rows[-1]["change"]) is not None and change <= -drop:
            text = f"{champion['model']} on {pictures}: {change:+.2f} dB against validation"
            log.warning(text)
            if trouble := notify.tell("drift", text, **rows[-1]):
                log.warning(trouble)
    return rows, failures


@flow(name="reconstruct-batch", on_failure=[notify.failed], on_crashed=[notify.failed])
def reconstruct_batch(
    measurements: str,
    out: str,
    model: str = "models:/elder-csmri@champion",
    suffix: Literal[".png", ".tif", ".npy"] = ".png",
    own_code: str = "",
    resume: bool = False,
    folder: str = str(ROOT),
    timeout: Seconds = 6 * 3600.0,
) -> None:
    """Reconstruct a folder of measurements with the champion, or with any other model.

    Args:
        measurements: The folder of measurements, each a file as `elder simulate` writes or docs/files.md describes.
        out: Where the pictures go, with batch.json, which has a line for each measurement.
        model: The model: an address in the registry, released:NAME, or a bundle folder.
        suffix: Of the pictures. .png has 8 bits; .tif and .npy keep the values.
        own_code: The class of the model's problem, such as mine.Problem, if it is one of your own. Empty: it is not.
        resume: Leave a picture that is there as it is, if the same model made it from the same file.
        folder: The project. Other paths are relative to it.
        timeout: Seconds for the whole folder.
    """
    root = Path(folder).resolve()
    flow_runs.begin(root, get_run_logger().warning)
    if not (root / measurements).is_dir():
        raise ValueError(f"measurements: {root / measurements} is no folder")
    command = [sys.executable, "-m", "pipeline.batch", model, "--measurements", str(root / measurements)]
    command += ["--out", str(root / out), "--suffix", suffix]
    command += ["--own-code", own_code] if own_code else []
    command += ["--resume"] if resume else []
    listed = root / out / "batch.json"
    before = listed.stat().st_mtime_ns if listed.exists() else None
    try:
        run("reconstruct", command, root, timeout)
    finally:
        if listed.exists() and listed.stat().st_mtime_ns != before:
            rows = json.loads(listed.read_text())
            create_table_artifact(rows[:ROWS], "batch", f"{len(rows)} measurements; all of them: {listed}")
