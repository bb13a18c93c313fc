"""The progress of a child process, from the bar that it draws, as an artifact of Prefect."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

# A drawing of tqdm: "pretrain red:  40%|████      | 120/300 [00:10<00:15, 11.9it/s, loss=0.01]".
DRAWING = re.compile(r"^(?P<title>.*?):?\s*(?P<percent>\d{1,3})%\|.*?\|\s*(?P<rest>.*)$")
# Seconds between two updates: each is a request to the server.
PAUSE = 2.0


class Progress:
    """Takes the lines of a child: a drawing of its bar moves the artifact, any other line goes to the log.

    title: how the title of the bar begins. Drawings of other bars, of downloads for one, are left out.

    The artifact is made at the first drawing, so a stage without a bar has none. A server that does not answer stops
    the artifact, and not the training.
    """

    def __init__(self, key: str, title: str, log: Callable[[str], None]) -> None:
        self._key, self._title, self._log = key, title, log
        self._artifact: UUID | None = None
        self._shown = (-1, 0.0)  # percent, and when it was shown, in s

    def __call__(self, line: str) -> None:
        """Show one line."""
        drawing = DRAWING.match(line)
        if drawing is None:
            self._log(line)
            return
        if not drawing["title"].startswith(self._title):
            return
        percent, now = min(int(drawing["percent"]), 100), time.monotonic()
        before, when = self._shown
        if percent == before or (percent < 100 and now - when < PAUSE):
            return
        self._shown = (percent, now)
        told = f"{drawing['title']}: {drawing['rest']}"
        # Prefect would try for a minute, and the training would wait in the meantime for somebody to read its output.
        once = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})
        with once, contextlib.suppress(httpx.HTTPError, PrefectException):
            if self._artifact is None:
                self._artifact = cast(UUID, create_progress_artifact(percent, key=self._key, description=told))
            else:
                update_progress_artifact(self._artifact, percent, description=told)


def drawn(line: str) -> bool:
    """Whether a line is a drawing of a bar."""
    return DRAWING.match(line) is not None
