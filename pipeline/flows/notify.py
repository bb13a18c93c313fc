"""Tell somebody what happened: a line in a log file, or a POST to a URL, as the environment says.

ELDER_NOTIFY=/var/log/elder.jsonl        a line of JSON for each event
ELDER_NOTIFY=https://chat.example/hook   the same JSON as the body of a POST; its key "text" is one sentence
"""

from __future__ import annotations

import json
import os
import platform
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.logging.loggers import flow_run_logger

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import FlowRun, State

VARIABLE = "ELDER_NOTIFY"
# Seconds in which a URL must answer.
PATIENCE = 10


def tell(event: str, text: str, **facts: Any) -> str | None:
    """Send one event. Returns what went wrong with it, in one line; an event that can't be sent fails no flow.

    event: failure, promotion or drift. text: one sentence for people.
    """
    target = os.environ.get(VARIABLE)
    if not target:
        return None
    when = datetime.now(UTC).isoformat("T", "seconds")
    line = json.dumps({"event": event, "text": text, "when": when, "host": platform.node(), **facts})
    try:
        if target.startswith(("http://", "https://")):
            kind = {"Content-Type": "application/json"}
            request = urllib.request.Request(target, line.encode(), kind)  # noqa: S310  the schemes are checked
            urllib.request.urlopen(request, timeout=PATIENCE).close()  # noqa: S310
        else:
            with Path(target).open("a") as file:
                file.write(f"{line}\n")
    except (OSError, ValueError) as error:
        return f"{VARIABLE}: {event} could not be told to {target} ({error})"
    return None


def left_to_the_flow_above(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook of a flow that failed within another one, which tells of it."""


def failed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook of a flow that failed or crashed."""
    text = f"{flow.name} {flow_run.name}: {state.name.lower() if state.name else 'failed'}: {state.message or ''}"
    trouble = tell("failure", text, flow=flow.name, run=str(flow_run.id))
    if trouble:
        flow_run_logger(flow_run, flow).warning(trouble)
