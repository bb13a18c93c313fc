"""Where MLflow keeps runs and models: a server, or a SQLite file that moves with its folder."""

from __future__ import annotations

import os
import re
import sqlite3
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from elder.errors import UserError

FILE = Path("mlflow.db")
EXPERIMENT = "elder"  # of all runs and models of a project
VARIABLE = "MLFLOW_TRACKING_URI"
# Seconds in which a server must answer.
PATIENCE = 5
# Where MLflow notes artifacts by their absolute paths.
NOTED = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def address() -> str | None:
    """The URI of the store: what a program or MLFLOW_TRACKING_URI has set, else `mlflow.db` here; `None` without any.

    MLflow's own default depends on its version, and escapes spaces and accents of the folder's name. The path is
    absolute, since MLflow opens a URI once in a process, and a program may change its folder.
    """
    mlflow = sys.modules.get("mlflow")
    if mlflow is not None and mlflow.is_tracking_uri_set():
        return str(mlflow.get_tracking_uri())
    if uri := os.environ.get(VARIABLE):
        return uri
    return here() if FILE.exists() else None


def here() -> str:
    """The URI of the store in this folder, whether there is one or not."""
    return f"sqlite:///{FILE.resolve()}"


def existing() -> str:
    """The URI of a store that is there. Raises `UserError` if there is none."""
    uri = address()
    if uri is None:
        raise UserError(
            f"no MLflow store here: there is no {FILE} in this folder, and {VARIABLE} is not set; go to the "
            "folder of a project that has trained, or set it"
        )
    file = database(uri)
    if file is not None and not file.exists():
        raise UserError(f"{uri}: no such store; correct {VARIABLE}")
    return uri


def database(uri: str) -> Path | None:
    """The file behind a SQLite URI; `None` for a store of another kind."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def check(uri: str) -> None:
    """Make a SQLite store fit its folder, see `settle`; raise `UserError` for a server that does not answer."""
    file = database(uri)
    if file is not None:
        settle(file)
    elif uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PATIENCE).close()  # noqa: S310
        except urllib.error.HTTPError:
            pass  # a refusal says that somebody is there
        except (OSError, ValueError) as error:
            raise UserError(
                f"{uri}: the MLflow server does not answer ({error}); start it, or correct {VARIABLE}", temporary=True
            ) from None


def made(file: Path) -> int | None:
    """When our experiment was made in a SQLite store, in ms since 1970; `None` if it was not. A copy has the same.

    Raises `UserError` if the file is no store of MLflow's.
    """
    with _transaction(file) as connection:
        found = connection.execute("SELECT creation_time FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchone()
    return None if found is None else int(found[0])


def settle(file: Path) -> bool:
    """Bring the artifact paths of a SQLite store to the folder that it lies in. Returns whether any was elsewhere.

    MLflow notes absolute paths. In a moved or copied folder they name the place that was left, where a copy would read
    and write. A path is brought along if its artifacts are here, or if they are not where it says. Artifacts that are
    kept elsewhere on purpose stay there.

    Raises `UserError` if the file is no store of MLflow's, or can't be written although it has to be.
    """
    root = file.resolve().parent
    with _transaction(file) as connection:
        found = connection.execute("SELECT artifact_location FROM experiments").fetchall()
        stale = {old for (location,) in found if (old := _elsewhere(location, root)) is not None}
        for old in stale:
            for table, column in NOTED:
                connection.execute(
                    # The names are those above; the paths are parameters.
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608
                    (f"{noted(root)}/mlruns/", len(old) + 1, len(old), old),
                )
    return bool(stale)


@contextmanager
def _transaction(file: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(file, timeout=60)) as connection, connection:
            yield connection
    except sqlite3.Error as error:
        raise UserError(f"{file}: can't be used as a store of MLflow's ({error})") from None


def _elsewhere(location: str, root: Path) -> str | None:
    """The part up to `mlruns/` of an artifact path that has to be brought along; `None` where it is right."""
    match = re.fullmatch(r"((file://)?(/.*)/mlruns/)([^/]+)", location)
    if match is None:
        return None
    prefix, escaped, folder, name = match.groups()
    left = Path(urllib.parse.unquote(folder) if escaped else folder)
    here, there = root / "mlruns" / name, left / "mlruns" / name
    return prefix if left != root and (here.exists() or not there.exists()) else None


def noted(folder: Path) -> str:
    """A folder as MLflow is to note it: its path, or a URI where MLflow would take characters of the path for signs.

    Raises `UserError` for a path that MLflow can't use: it reads options after a question mark, and %41 as A.
    """
    if re.search("[?]|%[0-9A-Fa-f]{2}", str(folder)):
        raise UserError(f"{folder}: MLflow can't use a folder with ? or a number after % in its name; rename it")
    return folder.as_uri() if re.search("[%#]", str(folder)) else str(folder)
