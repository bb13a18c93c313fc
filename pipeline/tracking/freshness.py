"""Whether what is here is what the present settings, pictures and code make."""

from __future__ import annotations

import json
import subprocess
import sys

from elder.errors import UserError


def outdated(target: str) -> set[str]:
    """Of a stage or an output and all before it: the stages that `dvc repro` would run again.

    Without the stage `code`, which runs again for any change of any module: the files that it writes tell of what
    concerns a stage. Raises `UserError` if DVC knows no such target.
    """
    command = [sys.executable, "-m", "dvc", "status", "--json", "--with-deps", target]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"dvc status {target}: {done.stderr.strip().splitlines()[-1]}")
    return set(json.loads(done.stdout)) - {"code"}
