"""The DVC repository that flows share: who holds it, and files that a kill has damaged."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from pipeline.flows import repository

LOCK_FILE = """schema: '2.0'
stages:
  one:
    cmd: echo one
    outs:
    - path: one.txt
      hash: md5
      md5: 5bbf5a52328e7439ae6e719dfe712200
      size: 4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
    return tmp_path


@pytest.mark.parametrize(
    "text", [b"", LOCK_FILE[:60].encode(), LOCK_FILE.split("sh: md5")[0].encode(), b"stages: [", b"\xff\xfe\x00"]
)
def test_a_broken_lock_file_is_kept_under_another_name(text, folder):
    (folder / "dvc.lock").write_bytes(text)
    (line,) = repository.heal(folder)
    assert not (folder / "dvc.lock").exists()
    (aside,) = (folder / ".dvc" / "tmp").glob("dvc.lock.*")
    assert aside.read_bytes() == text
    assert f"dvc.lock was broken and is now {aside}" in line


def test_a_whole_lock_file_stays(folder):
    (folder / "dvc.lock").write_text(LOCK_FILE)
    assert repository.heal(folder) == []
    assert (folder / "dvc.lock").read_text() == LOCK_FILE


@pytest.mark.parametrize("text", ["", '{"write": {"/a', '{"write": {"/a": {"pid": "many"}}}'])
def test_a_broken_rwlock_is_removed(text, folder):
    path = folder / ".dvc" / "tmp" / "rwlock"
    path.write_text(text)
    assert repository.heal(folder) == [f"{path} was broken and is removed"]
    assert not path.exists()


def sleeper(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", *words])


def test_an_entry_stays_only_while_its_command_runs(folder):
    """Entries of a DVC command, of a dead process, and of a number that another program has."""
    path = folder / ".dvc" / "tmp" / "rwlock"
    dvc, other, dead = sleeper("dvc", "repro"), sleeper("editor"), sleeper()
    dead.kill()
    dead.wait()
    try:
        entries = [{"pid": each.pid, "cmd": "/bin/dvc repro"} for each in (dvc, other, dead)]
        path.write_text(
            json.dumps(
                {"write": {f"/{i}": e for i, e in enumerate(entries)}, "read": {"/r": entries, "/s": entries[1:]}}
            )
        )
        lines = repository.heal(folder)
        assert json.loads(path.read_text()) == {"write": {"/0": entries[0]}, "read": {"/r": [entries[0]]}}
        assert {line.split("named ")[1] for line in lines} == {
            f"PID {each.pid} (/bin/dvc repro), which runs no more; removed" for each in (other, dead)
        }
        assert repository.heal(folder) == []
        # A number that another DVC command has by now, which began after the entry was written.
        os.utime(path, times=(0, psutil.Process(dvc.pid).create_time() - 60))
        assert len(repository.heal(folder)) == 1
        assert json.loads(path.read_text()) == {"write": {}, "read": {}}
    finally:
        for each in (dvc, other):
            each.kill()
            each.wait()


def test_what_a_dvc_command_writes_at_this_moment_is_left_alone(folder):
    from dvc.lock import make_lock

    (folder / "dvc.lock").write_text("")
    lock = make_lock(str(folder / ".dvc" / "tmp" / "lock"))
    with lock:
        (line,) = repository.heal(folder)
    assert "dvc.lock was not looked at: another DVC command holds" in line
    assert (folder / "dvc.lock").read_text() == ""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the repository until it is killed."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from pipeline.flows import repository\n"
        "with repository.hold(Path(sys.argv[1]), 'flow run brave-crow', print):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(300)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    held = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert held.stdout is not None
    assert held.stdout.readline() == "held\n"
    return held


def test_a_second_run_is_told_who_holds_the_repository_until_that_one_is_killed(folder):
    first = holder(folder)
    said: list[str] = []
    try:
        who = rf"flow run brave-crow \(PID {first.pid}\) holds {folder}"
        with (
            pytest.raises(repository.RepositoryHeld, match=who),
            repository.hold(folder, "second", said.append, patience=0),
        ):
            pass
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with repository.hold(folder, "second", said.append, patience=0):
        pass
    assert said == []


def test_a_look_at_the_lock_refuses_nobody(folder):
    with repository.hold(folder, "first", print, patience=0):
        assert "first (PID" in repository.holder(folder)
    path = folder / repository.TEMPORARY / repository.FLOW_LOCK
    assert path.read_text() == ""
    said: list[str] = []
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as `holder` does, for an instant
        threading.Timer(repository.INSTANT / 4, lambda: fcntl.flock(file, fcntl.LOCK_UN)).start()
        with repository.hold(folder, "second", said.append, patience=0):
            assert said == []


def test_a_second_run_waits_for_the_first(folder):
    first = holder(folder)
    said: list[str] = []

    def end(line: str) -> None:
        said.append(line)
        first.kill()

    with repository.hold(folder, "second", end, patience=60):
        assert said == [f"waiting: flow run brave-crow (PID {first.pid}) holds {folder}"]
    first.wait()


def test_dvc_goes_on_from_its_run_cache_after_healing(folder):
    """Once it is healed: before, DVC refuses."""
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}

    def repro() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["dvc", "repro"], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    (folder / "in.txt").write_text("one")
    (folder / "dvc.yaml").write_text("stages: {one: {cmd: cp in.txt out.txt, deps: [in.txt], outs: [out.txt]}}")
    assert "Running stage 'one'" in repro().stdout
    stages = (folder / "dvc.lock").read_text()
    (folder / "dvc.lock").write_text("")
    (folder / ".dvc" / "tmp" / "rwlock").write_text("")
    assert repro().returncode != 0
    assert len(repository.heal(folder)) == 2
    mended = repro()
    assert mended.returncode == 0, mended.stderr
    assert "Stage 'one' is cached - skipping run" in mended.stdout
    assert (folder / "dvc.lock").read_text() == stages


@pytest.mark.slow
def test_a_flow_heals_and_repeats_no_training(finished):
    """From the run cache: no stage runs but `store`, which always does, and the results are those that were there."""
    weights = finished.folder / "models" / "pretrained" / "least_squares" / "weights.safetensors"
    before = weights.read_bytes()
    lock, rwlock = finished.folder / "dvc.lock", finished.folder / ".dvc" / "tmp" / "rwlock"
    stages = lock.read_text()
    lock.write_text("")
    rwlock.write_text("")
    done = finished.run(sys.executable, "-m", "pipeline.flows")
    printed = done.stdout + done.stderr
    assert "dvc.lock was broken" in printed
    assert "rwlock was broken" in printed
    assert re.findall(r"Running stage '(\S+)'", printed) == ["store"]
    assert weights.read_bytes() == before
    assert lock.read_text() == stages


def test_the_command_by_hand_mends(folder):
    (folder / "dvc.lock").write_text("")
    command = [sys.executable, "-m", "pipeline.heal", "--folder", str(folder)]
    first, second = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(2))
    assert "dvc.lock was broken and is now" in first.stdout
    assert second.stdout == "nothing to mend\n"
