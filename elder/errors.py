"""Errors and warnings that a user can put right."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can put right: the message names the setting or file, and the remedy.

    temporary: whether a server or a disk can't be used now, so that nothing is known of what it holds.
    """

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        super().__init__(message)
        self.temporary = temporary


class DataWarning(UserWarning):
    """Data that can be used, but probably do not mean what they seem to: the message names the file and the remedy."""
