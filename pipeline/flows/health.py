"""Whether a Prefect server answers."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request

# Seconds that a server has to answer for the first time.
PATIENCE = 10.0


def check(url: str, who: str) -> None:
    """Wait until the server of PREFECT_API_URL answers, or end this process, `who`, with one line."""
    deadline = time.monotonic() + PATIENCE
    while not answers(url):
        if time.monotonic() > deadline:
            sys.exit(f"{who}: no Prefect server answers at PREFECT_API_URL={url}; start it, or correct the address")
        time.sleep(0.5)


def answers(url: str) -> bool:
    """Whether a Prefect server answers at this address of its API."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2):  # noqa: S310  an address that the user gave
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False
