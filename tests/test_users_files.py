"""What a user gave is never replaced, and what is written is an ordinary file, whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from elder import UserError, io
from elder.cli import main
from elder.model.model import Model


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capfd, message: str, *arguments: object) -> None:
    assert main([str(a) for a in arguments]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]


@pytest.fixture
def pictures(photographs, tmp_path) -> Path:
    """A folder of the user's pictures, with one in a folder below."""
    folder = tmp_path / "given" / "pictures"
    shutil.copytree(photographs, folder)
    (folder / "deep").mkdir()
    shutil.move(folder / "coins.png", folder / "deep" / "coins.png")
    return folder


def linked(link: Path, to: Path) -> Path:
    link.symlink_to(to)
    return link


# Where results may not go, beside the pictures; and what the line says.
PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "the folder itself": (lambda d: d, "would replace"),
    "by way of another": (lambda d: d / "deep" / "..", "would replace"),
    "a link to it": (lambda d: linked(d.parent / "link", d), "would replace"),
    "below it": (lambda d: d / "report" / "new", "lies in"),
    "below a link to it": (lambda d: linked(d.parent / "link", d) / "report", "lies in"),
    "a folder of it": (lambda d: d / "deep", "lies in"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", ["simulate", "evaluate"])
def test_pictures_are_neither_replaced_nor_joined_by_results(command, place, pictures, bundle, capfd):
    make, message = PLACES[place]
    out, before = make(pictures), contents(pictures)
    subject = "csmri" if command == "simulate" else bundle
    refused(capfd, message, command, subject, "--images", pictures, "--out", out)
    assert contents(pictures.parent) == {f"pictures/{name}": content for name, content in before.items()}


def test_results_do_not_go_where_links_of_the_folder_lead(pictures, bundle, tmp_path, capfd):
    """A folder of links: one to a folder, which is followed, and one to a picture."""
    images, out = tmp_path / "images", tmp_path / "given"
    images.mkdir()
    (images / "all").symlink_to(pictures)
    refused(capfd, "lies in", "evaluate", bundle, "--images", images, "--out", pictures / "report")
    (images / "all").unlink()
    (images / "camera.png").symlink_to(pictures / "camera.png")
    refused(capfd, "holds", "evaluate", bundle, "--images", images, "--out", pictures)
    # A folder beside the picture that a link leads to is not read the next time.
    done = ["evaluate", str(bundle), "--images", str(images), "--out", str(out / "report"), "--set", "ratio=0.5"]
    assert main(done) == 0
    assert {path.name for path in (out / "report").iterdir()} == {"camera.png", "metrics.json"}


@pytest.fixture
def measurement(photographs, tmp_path) -> Path:
    """y.npz, with the mask that measured it beside it in mask.npy."""
    folder = tmp_path / "measured"
    assert main(["simulate", "csmri", "--images", str(photographs), "--out", str(folder), "--set", "ratio=0.5"]) == 0
    arrays = io.read_arrays(folder / "camera.npz")
    np.save(tmp_path / "y.npy", arrays["y"])
    np.save(tmp_path / "mask.npy", arrays["mask"])
    return tmp_path / "y.npy"


def hard_link(link: Path, to: Path) -> Path:
    link.hardlink_to(to)
    return link


# Files that a reconstruction may not take the place of.
TARGETS: dict[str, Callable[[Path], Path]] = {
    "the measurement": lambda d: d / "y.npy",
    "the measurement by way of another": lambda d: d / "measured" / ".." / "y.npy",
    "a link to the measurement": lambda d: linked(d / "x.npy", d / "y.npy"),
    "a hard link to the measurement": lambda d: hard_link(d / "x.npy", d / "y.npy"),
    "the mask": lambda d: d / "mask.npy",
    "a file of the model": lambda d: d / "model" / "mask.npy",
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_reconstruction_replaces_nothing_that_it_reads(target, measurement, bundle, tmp_path, capfd):
    capfd.readouterr()
    shutil.copytree(bundle, tmp_path / "model")
    out = TARGETS[target](tmp_path)
    before = contents(tmp_path)
    given = ("--measurement", measurement, "--set", f"mask={tmp_path / 'mask.npy'}", "--out", out)
    refused(capfd, "lies in" if "model" in target else "would replace", "reconstruct", tmp_path / "model", *given)
    assert contents(tmp_path) == before


def test_a_measurement_does_not_replace_the_mask_that_makes_it(measurement, photographs, tmp_path, capfd):
    capfd.readouterr()
    folder = tmp_path / "measured"
    given = ("--images", photographs, "--out", folder, "--set", f"mask={folder / 'camera.npz'}")
    refused(capfd, "would replace", "simulate", "csmri", *given)


def test_results_may_go_above_the_pictures(pictures, capfd):
    """They lie beside the folder of the pictures, and are not read the next time."""
    before = contents(pictures)
    for _ in range(2):
        assert main(["simulate", "csmri", "--images", str(pictures), "--out", str(pictures.parent)]) == 0
    assert contents(pictures) == before
    assert len(list(pictures.parent.glob("*.npz"))) == 6
    capfd.readouterr()


def test_capital_letters_make_a_difference_where_they_do(pictures):
    other = pictures.with_name("PICTURES")
    if other.exists():  # this file system ignores them
        with pytest.raises(UserError, match="would replace"):
            io.check_apart(pictures, other)
    else:
        io.check_apart(pictures, other)


GRAY = np.linspace(0, 1, 40 * 48).reshape(40, 48)

# Every writer, by the name of what it writes.
WRITERS: dict[str, Callable[[Path, Model], None]] = {
    "x.json": lambda path, model: io.write_json(path, {"psnr": 31.5}),
    "x.csv": lambda path, model: io.write_csv(path, [{"psnr": 31.5}]),
    "x.png": lambda path, model: io.write_image(path, GRAY),
    "x.tif": lambda path, model: io.write_image(path, GRAY),
    "x.npy": lambda path, model: io.write_image(path, GRAY),
    "weights.safetensors": lambda path, model: model.save(path.parent),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_mode_of_the_umask(name, umask, mode, small_model, tmp_path):
    usual = os.umask(umask)
    try:
        for _ in ("new", "replaced"):
            WRITERS[name](tmp_path / name, small_model)
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
    finally:
        os.umask(usual)


@pytest.mark.parametrize("name", WRITERS)
def test_a_link_stays_one_and_its_file_is_replaced(name, small_model, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / name, tmp_path / name
    target.write_text("old")
    link.symlink_to(Path("elsewhere") / name)
    WRITERS[name](link, small_model)
    assert link.is_symlink()
    assert link.readlink() == Path("elsewhere") / name
    assert target.read_bytes() != b"old"
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [name]
    target.unlink()
    WRITERS[name](link, small_model)  # a link to a file that is not there makes it
    assert link.is_symlink()
    assert target.is_file()


def test_what_is_no_file_or_protected_is_not_replaced(tmp_path):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match="is no file"):
        io.write_json(tmp_path / "folder.json", {})
    (tmp_path / "device.json").symlink_to("/dev/null")
    with pytest.raises(UserError, match="is no file"):
        io.write_json(tmp_path / "device.json", {})
    assert Path("/dev/null").is_char_device()
    # As DVC leaves results that are links to its cache.
    cached = tmp_path / "cached"
    cached.write_text("{}")
    cached.chmod(0o444)
    (tmp_path / "out.json").symlink_to(cached)
    with pytest.raises(UserError, match="write-protected"):
        io.write_json(tmp_path / "out.json", {"a": 1})
    assert cached.read_text() == "{}"
    (tmp_path / "loop.json").symlink_to("loop.json")
    with pytest.raises(UserError, match="is no file"):
        io.write_json(tmp_path / "loop.json", {})


@pytest.mark.parametrize("suffix", [".json", ".csv", ".png", ".tif", ".npy"])
def test_a_name_of_250_characters_can_be_written(suffix, small_model, tmp_path):
    path = tmp_path / ("n" * (250 - len(suffix)) + suffix)
    WRITERS[f"x{suffix}"](path, small_model)
    WRITERS[f"x{suffix}"](path, small_model)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_names_of_250_characters_go_through_the_commands(bundle, photographs, tmp_path):
    images, measured, report = tmp_path / "images", tmp_path / "measured", tmp_path / "report"
    images.mkdir()
    name = "n" * 246
    shutil.copy(photographs / "camera.png", images / f"{name}.png")
    given = ["--images", str(images), "--set", "ratio=0.5"]
    assert main(["simulate", "csmri", *given, "--out", str(measured)]) == 0
    assert main(["evaluate", str(bundle), *given, "--out", str(report)]) == 0
    assert (report / f"{name}.png").is_file()
    y, x = str(measured / f"{name}.npz"), str(tmp_path / f"{name}.tif")
    assert main(["reconstruct", str(bundle), "--measurement", y, "--out", x]) == 0
    assert io.read_arrays(x)["y"].shape == (40, 48)


# Writes the second of two files of 80 kB where 10 kB are allowed, as a full disk does.
FULL = """
import resource, signal, sys
import numpy as np
from elder import io
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
io.write_image(sys.argv[1], np.random.default_rng(1).random((100, 200)))
"""
KILLED = """
import os, signal, sys
from elder import io
with io.replacing(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half of")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".png"])
def test_a_full_disk_leaves_the_old_file(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    io.write_image(path, np.random.default_rng(0).random((100, 200)))
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "OSError" in done.stderr
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_kill_leaves_the_old_file_and_no_picture(tmp_path):
    path = tmp_path / "x.png"
    io.write_image(path, GRAY)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert io.list_sources(tmp_path) == [path]  # what is left beside it is hidden
