"""Register the fine-tuned model, and move the champion through the gate."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict

from elder import io
from elder.model.model import load
from pipeline import card, params, registry, tracking
from pipeline.fingerprints import content_hash
from stages import command
from stages.samples import find_problem, read_samples


def main(arguments: argparse.Namespace) -> None:
    """Make a version of `elder-<problem>`, challenger at once, champion if it passes the gate.

    The gate compares validation PSNR. The test images are reported on the model's card and choose nothing.
    """
    chosen = params.read().registration
    problem = find_problem(arguments.problem)
    validation = read_samples(arguments.images, arguments.measurements, "validation", problem)
    psnr = io.read_json(arguments.metrics)["validation_psnr"]
    parts = [content_hash(folder / "validation") for folder in (arguments.images, arguments.measurements)]
    data = hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
    with tracking.run(f"register {arguments.cell}", {"register": chosen.model_dump()}, arguments.reads) as log:
        evidence = card.read(arguments.images, psnr, arguments.evaluation, arguments.baselines, chosen.license)
        text = card.write(load(arguments.model), evidence)
        candidate = registry.Candidate(problem, arguments.model, psnr, data, validation, text)
        verdict = registry.register(candidate, chosen.margin)
        log.metrics({"psnr": psnr, "promoted": float(verdict.promoted)})
    alias = "champion" if verdict.promoted else "challenger"
    print(f"{verdict.name} version {verdict.version} is {alias}: {verdict.reason}")
    io.write_json(arguments.out, asdict(verdict))


if __name__ == "__main__":
    command.run(
        main,
        reads=("images", "measurements", "model", "metrics", "evaluation", "baselines"),
        writes=("out",),
        problem="the inverse problem",
        cell="what is registered",
    )
