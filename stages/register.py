"""Register the fine-tuned model, and move the champion through the gate."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict

from elder import files
from pipeline import registry, tracking
from stages import posed, settings
from stages.params import Registration


def main(arguments: argparse.Namespace) -> None:
    """Make a version of `elder-<problem>`, challenger at once, champion if it passes the gate."""
    chosen = settings.typed(Registration, "register")
    problem = posed.problem(arguments.problem)
    test = posed.measured(arguments.images, arguments.measurements, "test", problem)
    psnr = files.read_json(arguments.metrics)["finetuned"]["psnr"]
    parts = [tracking.content_hash(folder / "test") for folder in (arguments.images, arguments.measurements)]
    data = hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
    inputs = [arguments.model, arguments.metrics]
    with tracking.run(f"register {arguments.cell}", {"register": vars(chosen)}, inputs) as log:
        verdict = registry.register(problem, arguments.model, psnr, data, test, chosen.margin)
        log.metrics({"psnr": psnr, "promoted": float(verdict.promoted)})
    alias = "champion" if verdict.promoted else "challenger"
    print(f"{verdict.name} version {verdict.version} is {alias}: {verdict.reason}")
    files.write_json(arguments.out, asdict(verdict))


if __name__ == "__main__":
    settings.run(
        main,
        "images",
        "measurements",
        "model",
        "metrics",
        "out",
        problem="the inverse problem",
        cell="what is registered",
    )
