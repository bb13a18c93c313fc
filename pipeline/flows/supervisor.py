"""Run a command that must not outlive whoever started it: `python -m pipeline.flows.supervisor [OPTION]... COMMAND...`.

The starter holds the other end of this process's standard input, and makes this process the leader of a session. When
the pipe closes, because the starter closed it or died, by SIGKILL even, the command ends with all that it started.
The same happens to what a command leaves behind when it ends or is killed: DVC alone would leave its stage running.

The end has three steps. The command gets SIGTERM and `--patience` seconds. Then all of them get SIGTERM and `REST`
seconds. Then they get SIGKILL. With `--children-first` the first SIGTERM goes to what the command started, and not to
the command: DVC then sees its stage fail, and ends after it has written its files, as it does after any failure.

What the command started is found also where it has left the session, as the flows of a Prefect worker do, and where
its parent is gone. A supervisor below this one ends what it started itself, once its own starter has ended. It gets
no signal in the first step, and never SIGKILL.

The supervisor is a child of the process that was started, which only stands in for it: a worker of Ray that ends kills
its children by SIGKILL, and would take the one process with it that could end the command.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import psutil

# Seconds between SIGTERM and SIGKILL for what outlives the first step.
REST = 0.5
# Seconds between two looks at the group.
INTERVAL = 0.05
# Of prctl: orphans below this process become its children, and not those of the first process of the system.
SUBREAPER = 36


def main() -> int:
    """The command's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patience", type=float, required=True, metavar="SECONDS", help="that the first step may take")
    parser.add_argument("--children-first", action="store_true", help="the command itself gets no SIGTERM at first")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if supervisor := os.fork():
        return _stand_in(supervisor)
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    child = subprocess.Popen(arguments.command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_wait_for_end_of_input, args=[told], daemon=True).start()
    threading.Thread(target=_wait_for_end_of, args=[child, told], daemon=True).start()
    told.wait()
    end(child, arguments.patience, arguments.children_first)
    return child.wait()


def _stand_in(supervisor: int) -> int:
    """Pass SIGTERM on to the supervisor; its exit code. If it is killed, this process ends as by the same signal."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(supervisor, signal.SIGTERM))
    code = os.waitstatus_to_exitcode(os.waitpid(supervisor, 0)[1])
    if code < 0:
        os.kill(os.getpid(), -code)
    return code


def end(child: subprocess.Popen[bytes], patience: float, children_first: bool) -> None:
    """End the command and what it started, in the three steps above."""
    told: set[int] = set()

    def first(member: psutil.Process) -> bool:
        if _supervises(member):
            return False
        # What a command started must go as well where the command itself is gone.
        return child.poll() is not None or (member.pid == child.pid) != children_first

    for wanted, seconds in ((first, patience), (lambda _: True, REST)):
        deadline = time.monotonic() + seconds
        while found := members():
            # DVC may start its next stage before it sees the end of this one, so every look may find new ones.
            told |= _signal([member for member in found if member.pid not in told and wanted(member)], signal.SIGTERM)
            if time.monotonic() > deadline:
                break
            time.sleep(INTERVAL)
    while found := members():
        _signal([member for member in found if not _supervises(member)], signal.SIGKILL)
        time.sleep(INTERVAL)


def members() -> list[psutil.Process]:
    """The living processes of this process's group, and those below it that no other supervisor ends."""
    found = {member.pid: member for member in _group()}
    parents = [psutil.Process()]
    while parents:
        for child in _children(parents.pop()):
            found[child.pid] = child
            if not _supervises(child):
                parents.append(child)
    return [member for member in found.values() if _lives(member)]


def _group() -> list[psutil.Process]:
    """Those of this process's group, without this one and the one that stands in for it."""
    found = []
    for pid in psutil.pids():
        try:
            if pid not in (os.getpid(), os.getppid()) and os.getpgid(pid) == os.getpgrp():
                found.append(psutil.Process(pid))
        except (ProcessLookupError, PermissionError, psutil.Error):  # ended, or hidden, and so not of this group
            continue
    return found


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.Error:  # it has ended
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _supervises(process: psutil.Process) -> bool:
    """Whether this is a supervisor, which ends by itself when its starter has ended."""
    try:
        return process.cmdline()[1:3] == ["-m", "pipeline.flows.supervisor"]
    except psutil.Error:
        return False


def _signal(members: list[psutil.Process], number: int) -> set[int]:
    """Send the signal; the numbers of the processes."""
    for member in members:
        try:
            member.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    return {member.pid for member in members}


def _wait_for_end_of_input(told: threading.Event) -> None:
    # The raw descriptor: a thread that waits inside sys.stdin would hold up the interpreter's exit.
    while os.read(0, 1024):
        pass
    told.set()


def _wait_for_end_of(child: subprocess.Popen[bytes], told: threading.Event) -> None:
    child.wait()
    told.set()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code if code >= 0 else 128 - code)
