"""Models by name: the MLflow model registry, for those who have MLflow installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from elder.errors import UserError


def download(uri: str) -> Path:
    """The bundle folder behind an MLflow URI. Raises `UserError` when MLflow or the model is missing."""
    mlflow = _mlflow()
    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise UserError(
            f"{uri}: not found in {mlflow.get_tracking_uri()} ({str(error).splitlines()[0]}); "
            "set MLFLOW_TRACKING_URI, or see what there is with: elder models"
        ) from None
    # MLflow keeps the name that the folder had when it was logged.
    bundles = list(folder.glob("artifacts/*/config.json"))
    if len(bundles) != 1:
        raise UserError(f"{uri}: that model was not made by elder")
    return bundles[0].parent


def listing() -> list[dict[str, Any]]:
    """Every version of every elder model, newest first.

    Each has name, version, alias, psnr (on validation, in dB) and when (ISO 8601, UTC).
    """
    from datetime import UTC, datetime

    client = _mlflow().MlflowClient()
    rows = []
    for model in client.search_registered_models("name LIKE 'elder-%'"):
        aliases: dict[str, list[str]] = {}
        for alias, version in client.get_registered_model(model.name).aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        for version in client.search_model_versions(f"name = '{model.name}'"):
            rows.append(
                {
                    "name": model.name,
                    "version": int(version.version),
                    "alias": ", ".join(sorted(aliases.get(str(version.version), []))),
                    "psnr": float(version.tags.get("psnr", "nan")),
                    "when": datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat("T", "seconds"),
                }
            )
    return sorted(rows, key=lambda row: (row["name"], -row["version"]))


def _mlflow() -> Any:
    try:
        import mlflow
        import mlflow.exceptions
    except ImportError:
        raise UserError("the model registry needs MLflow: pip install mlflow") from None
    return mlflow
