"""What a run shows in Prefect: tables, verdicts and small pictures, if they are new; links to MLflow and the report."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import platform
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from PIL import Image
from prefect import get_run_logger, task
from prefect.artifacts import (
    Artifact,
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from pipeline.flows import process

# Pixels of the longer side of a picture in Prefect's database. The run of MLflow has the picture itself.
SIDE = 512
QUALITY = 75
# Seconds for a look at MLflow.
PATIENCE = 120


@task(name="publish", cache_policy=NO_CACHE)
def publish(folder: Path, now: Mapping[str, int]) -> None:
    """The table and the verdict of every cell, the figures of every problem, and links to the report and its run.

    Every artifact notes a hash of what it shows, and is made again only if that differs.

    now: the versions that are champions, by the name of the model; see `champions`.
    """
    reports = folder / "reports"
    for cell, verdict in verdicts(folder).items():
        key, metrics = key_of(cell), reports / "cells" / cell / "metrics.json"
        if not metrics.exists():  # its evaluation failed this time
            continue
        rows = [{"method": name, **row} for name, row in json.loads(metrics.read_text()).items()]
        if_new(f"{key}-table", json.dumps(rows).encode(), partial(create_table_artifact, rows))
        told = "; ".join(filter(None, (verdict["told"], since(verdict, now))))
        if_new(f"{key}-verdict", told.encode(), partial(create_markdown_artifact, told))
    for picture in sorted((reports / "figures").glob("*.png")):
        if_new(key_of(picture.stem), picture.read_bytes(), partial(show, picture))
    if (reports / "index.html").exists():
        link(folder)


def verdicts(folder: Path) -> dict[str, dict[str, Any]]:
    """What the gate decided last of every cell that has been registered."""
    found = sorted((folder / "reports" / "cells").glob("*/registered.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in found}


def champions(folder: Path) -> dict[str, int]:
    """The version of the champion of each registered model, as the registry says now; empty if it can't be read."""
    command = [sys.executable, "-m", "pipeline.champions"]
    code, lines = process.run(command, lambda line: None, folder=folder, timeout=PATIENCE)
    found = json.loads(lines[-1]) if code == 0 and lines else []
    return {f"elder-{champion['problem']}": int(champion["version"]) for champion in found}


def since(verdict: Mapping[str, Any], now: Mapping[str, int]) -> str:
    """What the registry says where a promoted version is champion no more; empty where it still is, or is not known."""
    version = now.get(verdict["name"])
    gone = verdict["promoted"] and version is not None and version != verdict["version"]
    return f"by now the champion is version {version}" if gone else ""


def key_of(name: str) -> str:
    """The name with the characters that Prefect allows in keys."""
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name.lower())


def if_new(key: str, content: bytes, make: Callable[..., Any]) -> None:
    """Make an artifact, unless the latest artifact of this key is of the same content.

    make: takes the key, and a description that ends with a hash of the content.
    """
    digest = hashlib.sha256(content).hexdigest()[:16]
    # `get` is one function for both worlds; here it is called without a loop.
    last = cast(Any, Artifact.get(key))
    if last is None or digest not in (last.description or ""):
        make(key=key, description=f"SHA-256 {digest}")


def show(picture: Path, key: str, description: str) -> None:
    """Make the artifact of a picture."""
    create_image_artifact(thumbnail(picture), key, description)


def thumbnail(path: Path) -> str:
    """A picture of at most `SIDE` pixels as a data URI."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def link(folder: Path) -> None:
    """Link to the run in MLflow and to the report there, or say what a link needs."""
    command = [sys.executable, "-m", "pipeline.links", f"flow {flow_run.id}"]
    code, lines = process.run(command, lambda line: None, folder=folder, timeout=PATIENCE)
    found = json.loads(lines[-1]) if code == 0 and lines else {}
    if found.get("report"):
        run, report = found["run"], found["report"]
        if_new("mlflow-run", run.encode(), partial(create_link_artifact, run, "the run in MLflow"))
        if_new("report", report.encode(), partial(create_link_artifact, report, "the report"))
        return
    why = found.get("needs") or " ".join(lines[-1:]) or "MLflow can't be reached"
    get_run_logger().info(f"no link to the report: {why}")
    text = f"The report is `{folder / 'reports' / 'index.html'}` on {platform.node()}. For a link: {why}"
    if_new("report", text.encode(), partial(create_markdown_artifact, text))
