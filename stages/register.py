"""Register the fine-tuned model, and move the champion through the gate."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict
from pathlib import Path

from elder import io
from elder.model.model import load
from pipeline.registry import card, gate, packaging
from pipeline.settings import params
from pipeline.tracking import logs
from pipeline.tracking.fingerprints import content_hash
from stages import command
from stages.samples import find_problem, read_samples


def main(arguments: argparse.Namespace) -> None:
    """Make a version of `elder-<problem>`, challenger at once, champion if it passes the gate; nothing without a store.

    The gate compares validation PSNR. The test images are reported on the model's card and choose nothing.
    """
    chosen = params.read().registration
    problem = find_problem(arguments.problem)
    psnr = io.read_json(arguments.metrics)["validation_psnr"]
    if arguments.store.read_text().startswith("none"):
        reason = "not registered, since this is a DVC experiment; register.experiments: true does it"
        write(gate.Verdict(f"elder-{problem.name}", None, psnr, None, False, reason), arguments.out)
        return
    validation = read_samples(arguments.images, arguments.measurements, "validation", problem)
    parts = [content_hash(folder / "validation") for folder in (arguments.images, arguments.measurements)]
    data = hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
    # The registry needs it in this process, so the run is logged from here, too.
    import mlflow  # noqa: F401

    with logs.run(f"register {arguments.cell}", {"register": chosen.model_dump()}, arguments.reads) as log:
        evidence = card.read(arguments.images, psnr, arguments.evaluation, arguments.baselines, chosen.license)
        text = card.write(load(arguments.model, own_code=problem.own_code), evidence)
        code = packaging.code_hash(arguments.reads.code)
        candidate = gate.Candidate(problem, arguments.model, psnr, data, validation, text, code)
        verdict = gate.register(candidate, chosen.margin)
        log.metrics({"psnr": psnr, "promoted": float(verdict.promoted)})
    write(verdict, arguments.out)


def write(verdict: gate.Verdict, path: Path) -> None:
    """Tell the verdict, and write it for the report."""
    print(verdict.told)
    io.write_json(path, asdict(verdict) | {"told": verdict.told})


if __name__ == "__main__":
    command.run(
        main,
        reads=("images", "measurements", "model", "metrics", "evaluation", "baselines", "store"),
        writes=("out",),
        problem="the inverse problem",
        cell="what is registered",
    )
