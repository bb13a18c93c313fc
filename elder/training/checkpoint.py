"""The state of a training on disk: an interrupted training resumes from it and produces the same result."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elder import io
from elder.errors import UserError


@dataclass(frozen=True)
class Checkpoint:
    """The state of one training, in a folder that its settings and inputs name.

    every: steps between two writes. A write takes the place of the last one when it is whole; a full disk leaves the
    last one as it was.
    """

    folder: Path
    every: int

    @property
    def path(self) -> Path:
        """The file of the state."""
        return self.folder / "state.pt"

    def load(self) -> dict[str, Any] | None:
        """The last state, or None. Raises `UserError` when the file is corrupt."""
        if not self.path.exists():
            return None
        try:
            # On the processor first: a training that began on an accelerator can go on where there is none.
            return torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception as error:  # a truncated archive, or one that is none
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self.path}: corrupt checkpoint ({reason}); delete it to train from the start") from None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step`, if its turn has come."""
        if step % self.every:
            return
        with io.replacing(self.path) as temporary:
            torch.save(state, temporary)

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this process trains, no other does; the state is deleted when the block ends well.

        Raises `UserError` when another process holds the folder: one whose pipeline was killed may train on alone.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.folder}: another process is training this; wait for it, or end it") from None
            yield
            self.path.unlink(missing_ok=True)
