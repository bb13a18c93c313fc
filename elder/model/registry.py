"""Models by name: the MLflow model registry, for those who have MLflow installed."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from elder.errors import UserError
from elder.model import store

# Folders with what came from a server. A model may read its mask there as long as the process runs; then they go.
_downloads: list[tempfile.TemporaryDirectory[str]] = []


def download(uri: str) -> Path:
    """The bundle folder behind an MLflow URI.

    Raises `UserError` when MLflow, the store or the model is missing. It is `temporary` when it can't be told if the
    model is there: the store fails, or the disk is full.
    """
    with _opened() as mlflow:
        if store.database(mlflow.get_tracking_uri()) is None:
            _downloads.append(tempfile.TemporaryDirectory(prefix="elder-"))
        target = None if store.database(mlflow.get_tracking_uri()) else _downloads[-1].name
        try:
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=target))
        except (mlflow.exceptions.MlflowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if not _is_missing(error):
                raise UserError(
                    f"{uri}: can't be read from {mlflow.get_tracking_uri()} now ({reason})", temporary=True
                ) from None
            raise UserError(
                f"{uri}: not found in {mlflow.get_tracking_uri()} ({reason}); elder models lists what there is"
            ) from None
    # MLflow keeps the name that the folder had when it was logged.
    bundles = list(folder.glob("artifacts/*/config.json"))
    if len(bundles) != 1:
        raise UserError(f"{uri}: that model was not made by elder")
    return bundles[0].parent


def _is_missing(error: Exception) -> bool:
    """Whether an error of a download says that there is no such thing, and not that the store failed."""
    if isinstance(error, OSError):
        response = getattr(error, "response", None)  # of a server
        status = getattr(response, "status_code", None)
        return isinstance(error, FileNotFoundError) if status is None else status == HTTPStatus.NOT_FOUND
    status = getattr(error, "get_http_status_code", lambda: HTTPStatus.INTERNAL_SERVER_ERROR)()
    return status in (HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST)


def available() -> bool:
    """Whether MLflow is installed."""
    return importlib.util.find_spec("mlflow") is not None


def listing() -> list[dict[str, Any]]:
    """Every version of every elder model, newest first.

    Each has name, version, alias, psnr (on validation, in dB) and when (ISO 8601, UTC). Raises `UserError` without a
    store, or for one that can't be read.
    """
    with _opened() as mlflow:
        try:
            return _listing(mlflow.MlflowClient())
        except mlflow.exceptions.MlflowException as error:
            raise UserError(f"{mlflow.get_tracking_uri()}: {str(error).splitlines()[0]}") from None


def _listing(client: Any) -> list[dict[str, Any]]:
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


@contextmanager
def _opened() -> Iterator[Any]:
    """The module `mlflow`, set to the store that `store.address` finds while the block runs.

    Raises `UserError` without MLflow, without a store, or for a server that does not answer.
    """
    mlflow = _mlflow()
    uri = store.existing()
    store.check(uri)
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    variable = os.environ.get(store.VARIABLE)
    mlflow.set_tracking_uri(uri)
    try:
        yield mlflow
    finally:
        mlflow.set_tracking_uri(before)
        if variable is not None:
            os.environ[store.VARIABLE] = variable


def _mlflow() -> Any:
    try:
        import mlflow
        import mlflow.exceptions
    except ImportError:
        raise UserError("the model registry needs MLflow: pip install mlflow") from None
    return mlflow
