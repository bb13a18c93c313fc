"""Run a command that must not outlive whoever started it: `python -m pipeline.flows.supervisor COMMAND [ARGUMENT]...`.

The starter holds the other end of this process's standard input, and makes it the leader of a session. When that pipe
closes, because the starter closed it or died, by SIGKILL even, the whole group is killed: DVC alone would leave its
stage running.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    """The command's exit code."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_kill_group_at_end_of_input, daemon=True).start()
    return child.wait()


def _kill_group_at_end_of_input() -> None:
    # The raw descriptor: a thread that waits inside sys.stdin would hold up the interpreter's exit.
    while os.read(0, 1024):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code if code >= 0 else 128 - code)
