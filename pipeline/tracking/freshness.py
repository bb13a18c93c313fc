"""Whether what is here is what the present settings, pictures and code make."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from elder.errors import UserError

CODE = Path("reports/code")


def outdated(target: str, code: Mapping[str, str]) -> list[str]:
    """Of a stage and all before it: the stages that `dvc repro` would run again, sorted.

    target: the name of the stage; of an output, DVC would not look at what is before it.
    code: the present manifests of these stages, by their names; see `fingerprints.manifests`. DVC itself looks at the
    files that hold them, and these are as old as the last run.
    Raises `UserError` if DVC can't tell, since another one is running for example.
    """
    command = [sys.executable, "-m", "dvc", "status", "--json", "--with-deps", target]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"dvc status {target}: {told}")
    # The stage `code` runs again for any change of any module; what it would write is known without it.
    again = set(json.loads(done.stdout)) - {"code"}
    return sorted(again | {name.replace("/", "@") for name, manifest in code.items() if manifest != _written(name)})


def _written(stage: str) -> str | None:
    """What the stage `code` wrote for another one; `None` if it did not."""
    path = CODE / f"{stage}.txt"
    return path.read_text() if path.exists() else None
