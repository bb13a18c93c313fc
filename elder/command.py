"""Running a command: its errors as one line each, its exit code, and a quick end."""

from __future__ import annotations

import atexit
import gc
import os
import select
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from elder.errors import DataWarning, UserError

# Set it to see where an error comes from.
TRACEBACK = "ELDER_TRACEBACK"
# The exit code of a command whose output nobody reads on: that of a program ended by SIGPIPE, as shells give it.
UNREAD = 141


def run(program: str, work: Callable[[], None]) -> int:
    """Do the work of a command. Returns its exit code: 0; or 1 after one line on stderr that says what was wrong.

    A reader that closes its end of the output, as `head` does, has all that it wanted: the command ends without a line.
    A `DataWarning` is one line on stderr too. Any other exception than a `UserError` is a fault of this program or of
    its installation: its line gives the type, and how to see the traceback.
    """
    end_quickly()
    with warnings.catch_warnings():
        warnings.showwarning = _shown_by(program)
        warnings.simplefilter("always", DataWarning)
        try:
            work()
            sys.stdout.flush()
        except KeyboardInterrupt:
            line = "interrupted"
        except BrokenPipeError as error:
            if not _has_reader():
                return UNREAD
            line = describe(error)  # of another pipe or connection
        except Exception as error:
            if os.environ.get(TRACEBACK):
                traceback.print_exc()
            line = describe(error)
        else:
            return 0
    print(f"{program}: {line}", file=sys.stderr)
    return 1


def end_quickly() -> None:
    """Leave to the system what this process holds when it ends.

    Python would look for garbage among all that PyTorch defines, which takes half a second.
    """
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def describe(error: Exception) -> str:
    """One line that says what was wrong."""
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, UserError | OSError | ArithmeticError) and message:
        return message
    if isinstance(error, MemoryError):
        return f"out of memory ({message})" if message else "out of memory"
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    return f"unexpected {name}: {message} (set {TRACEBACK}=1 to see where)"


def _has_reader() -> bool:
    """Whether somebody reads the standard output. If not, what is left to print is dropped: it would fail again."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # it is no file of the system
        return True
    ended = select.poll()
    ended.register(output, 0)  # errors and the end of the other side are told without being asked for
    if not ended.poll(0):
        return True
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return False


def _shown_by(program: str) -> Callable[..., None]:
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, DataWarning):
            print(f"{program}: warning: {message}", file=sys.stderr)
        else:
            usual(message, category, *where, **more)

    return show
