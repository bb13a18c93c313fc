"""Glue around DVC: Prefect flows, MLflow tracking, the model registry and serving."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The environment variable that names the repro to which stages belong, where one command does not start all of them.
REPRO = "ELDER_REPRO"

# Both tools read these when they are first imported. State stays in the project's folder, and nothing reports home.
os.environ.setdefault("PREFECT_HOME", str(ROOT / ".prefect"))
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
# A flow that runs without a server starts one of its own. On a busy machine that takes longer than the default of 20 s.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
