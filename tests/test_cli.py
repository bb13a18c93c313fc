"""The command `elder`, as a user runs it."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from benchmarks import __main__ as benchmarks
from elder import command, io, released
from elder.cli import EPILOG, main


def failure(capsys, *arguments: object) -> str:
    """The one line on stderr of a command that exits with 1."""
    assert main([str(a) for a in arguments]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_simulate_then_reconstruct_then_the_picture_is_there(bundle, photographs, tmp_path, capsys):
    assert main(["simulate", "csmri", "--images", str(photographs), "--out", str(tmp_path), "--set", "ratio=0.5"]) == 0
    for suffix in (".png", ".tif", ".npy"):
        out = tmp_path / f"camera{suffix}"
        measurement = tmp_path / "camera.npz"
        assert main(["reconstruct", str(bundle), "--measurement", str(measurement), "--out", str(out)]) == 0
        assert io.read_arrays(out)["y"].shape == (40, 48)
    assert "after" in capsys.readouterr().out


def test_a_measurement_file_without_its_mask_takes_one_by_setting(bundle, photographs, mask, tmp_path, capsys):
    settings = ["--set", f"mask={mask}"]
    assert main(["simulate", "csmri", "--images", str(photographs), "--out", str(tmp_path), *settings]) == 0
    y = tmp_path / "y.npy"
    np.save(y, io.read_arrays(tmp_path / "camera.npz")["y"])
    out = tmp_path / "x.png"
    assert "needs the mask" in failure(capsys, "reconstruct", bundle, "--measurement", y, "--out", out)
    assert not out.exists()
    assert main(["reconstruct", str(bundle), "--measurement", str(y), "--out", str(out), *settings]) == 0
    assert out.exists()


def test_evaluate_writes_the_figures_of_the_design(bundle, photographs, mask, tmp_path):
    arguments = ["evaluate", str(bundle), "--images", str(photographs), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--set", f"mask={mask}", "--limit", "2"]) == 0
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report.keys() == {"problem", "settings", "mean", "baseline", "images"}
    assert report["problem"] == "csmri"
    assert report["settings"]["mask"] == str(mask)
    assert report["mean"].keys() == {"psnr", "ssim", "steps", "seconds"}
    assert [image["name"] for image in report["images"]] == ["brick", "camera"]
    for image in report["images"]:
        assert image.keys() == {
            "name", "psnr", "ssim", "psnr_initial", "misfit", "steps", "status", "monotone", "seconds"
        }  # fmt: skip
        assert image["monotone"]
    assert report["mean"]["psnr"] == pytest.approx(np.mean([image["psnr"] for image in report["images"]]))


def test_evaluate_leaves_nothing_of_an_earlier_evaluation(bundle, photographs, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["evaluate", str(bundle), "--images", str(photographs), "--out", str(out), "--limit"]
    assert main([*arguments, "2"]) == 0
    report = json.loads((out / "metrics.json").read_text())
    report["images"].append({"name": "../outside"})
    (out / "metrics.json").write_text(json.dumps(report))
    for name in ("outside.png", "out/mine.png"):
        io.write_image(tmp_path / name, np.zeros((8, 8)))
    assert main([*arguments, "1"]) == 0
    assert "holds a picture of no image that is evaluated now, mine.png for one" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["brick.png", "metrics.json", "mine.png"]
    assert (tmp_path / "outside.png").exists()


@pytest.mark.parametrize(
    "earlier",
    [
        {"images": [{"name": "mine"}], "accuracy": 1},
        {"problem": "csmri", "settings": {}, "mean": {}, "baseline": {}, "images": [{"name": "a\0b"}, 3]},
        [],
    ],
)
def test_evaluate_takes_no_other_report_for_one_of_its_own(earlier, bundle, photographs, tmp_path, capsys):
    out = tmp_path / "out"
    io.write_image(out / "mine.png", np.zeros((8, 8)))
    (out / "metrics.json").write_text(json.dumps(earlier))
    assert main(["evaluate", str(bundle), "--images", str(photographs), "--out", str(out), "--limit", "1"]) == 0
    assert (out / "mine.png").exists()


def test_evaluate_removes_no_picture_that_a_setting_names(bundle, photographs, mask, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ("evaluate", bundle, "--images", photographs, "--out", out)
    assert main([*map(str, arguments), "--limit", "2"]) == 0
    io.write_image(out / "camera.png", np.load(mask).astype(float))
    told = failure(capsys, *arguments, "--limit", "1", "--set", f"mask={out / 'camera.png'}")
    assert "would replace" in told
    assert (out / "camera.png").exists()


def test_bad_input_ends_in_one_line_and_nothing_half_written(bundle, photographs, mask, tmp_path, capsys):
    out = tmp_path / "out"
    evaluate = ("evaluate", bundle, "--images", photographs, "--out", out)
    wrong = tmp_path / "wrong.npy"
    np.save(wrong, np.eye(32, dtype=np.uint8))
    assert "32x32 but the image is 40x48" in failure(capsys, *evaluate, "--set", f"mask={wrong}")
    assert "unknown setting 'angles'" in failure(capsys, *evaluate, "--set", "angles=9")
    assert "no model here" in failure(capsys, "evaluate", tmp_path, "--images", photographs, "--out", out)
    assert "no such folder" in failure(capsys, "evaluate", bundle, "--images", tmp_path / "none", "--out", out)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no picture" in failure(capsys, "evaluate", bundle, "--images", empty, "--out", out)
    tifffile.imwrite(empty / "nan.tif", np.full((40, 48), np.nan, np.float32))
    assert "nan.tif: holds NaN" in failure(capsys, "evaluate", bundle, "--images", empty, "--out", out)
    assert "unknown problem" in failure(capsys, "simulate", "mri", "--images", photographs, "--out", out)
    assert "can't write" in failure(capsys, "reconstruct", bundle, "--measurement", mask, "--out", tmp_path / "x.bmp")
    assert not out.exists()


def test_wrong_usage_exits_with_two():
    with pytest.raises(SystemExit) as ended:
        main(["evaluate"])
    assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "csmri", "--images", "a", "--out", "b", "--set", "ratio"])
    assert ended.value.code == 2


def test_a_command_ends_without_a_search_for_garbage():
    """Among all that PyTorch defines, it takes half a second. What was registered before runs after."""
    code = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        "from elder import command\n"
        "for _ in range(2): command.run('x', lambda: print(gc.get_freeze_count()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0", "True"]


@pytest.mark.parametrize("command", ["simulate", "reconstruct", "evaluate", "models"])
def test_help_teaches_by_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_the_released_models_of_the_examples_are_there():
    named = re.findall(r"(?:released:|--card )([\w-]+)", " ".join(EPILOG.values()).replace("released:NAME", ""))
    assert named
    assert set(named) <= set(released.names())


def test_models_are_listed_where_there_is_no_store(tmp_path, monkeypatch, capsys):
    """As in a new clone: what comes with elder is the answer, and no error."""
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)  # which may know a store of another test
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["models"]) == 0
    printed = capsys.readouterr()
    assert "released:denoise-red" in printed.out
    assert "there is no registry here: a project that has trained has one" in printed.out
    assert printed.err == ""


def test_an_address_without_its_prefix_is_answered_with_the_whole_one(tmp_path, capsys):
    arguments = ("--measurement", tmp_path / "y.npy", "--out", tmp_path / "x.png")
    assert failure(capsys, "reconstruct", "denoise-red", *arguments).endswith(
        "no such folder; the model that comes with elder is released:denoise-red"
    )


def test_a_result_never_lands_in_the_folder_of_its_model(bundle, photographs, tmp_path, capsys):
    np.save(tmp_path / "y.npy", np.zeros((16, 16), np.float32))
    there = released.folder("denoise-red")
    before = sorted(there.iterdir())
    arguments = ("reconstruct", "released:denoise-red", "--measurement", tmp_path / "y.npy", "--out", there / "x.png")
    assert "write to another place" in failure(capsys, *arguments)
    assert sorted(there.iterdir()) == before
    before = sorted(bundle.iterdir())
    assert "would replace" in failure(capsys, "evaluate", bundle, "--images", photographs, "--out", bundle)
    assert sorted(bundle.iterdir()) == before


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((0, 5), "a measurement must hold values; got an empty one, (0, 5)"),
        ((3, 8, 9), "the model's pictures have 1 channel, those of the measurement 3: give it each channel by itself"),
    ],
)
def test_a_measurement_of_another_shape_than_the_model_s_is_told_with_the_remedy(shape, message, tmp_path, capsys):
    np.save(tmp_path / "y.npy", np.zeros(shape, np.float32))
    arguments = ("--measurement", tmp_path / "y.npy", "--out", tmp_path / "x.png")
    assert message in failure(capsys, "reconstruct", "released:denoise-red", *arguments)
    assert not (tmp_path / "x.png").exists()


def test_help_on_the_benchmarks_starts_none(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--help"])
    monkeypatch.setattr(benchmarks.subprocess, "run", lambda *arguments, **options: pytest.fail("a benchmark started"))
    with pytest.raises(SystemExit) as ended:
        benchmarks.main()
    assert ended.value.code == 0
    assert "make bench" in capsys.readouterr().out


def test_the_installed_command_answers():
    tool = Path(sys.executable).with_name("elder")
    assert subprocess.run([tool, "--help"], capture_output=True, text=True, check=True).stdout.startswith(
        "usage: elder"
    )


def test_a_reader_that_has_enough_ends_the_command_without_a_line():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [Path(sys.executable).with_name("elder"), "models"]
        ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert (ended.stderr, ended.returncode) == ("", 141)


def test_a_pipe_that_breaks_elsewhere_is_told(capsys):
    def work() -> None:
        raise BrokenPipeError(errno.EPIPE, "the worker has gone")

    assert command.run("tune", work) == 1
    assert capsys.readouterr().err == "tune: [Errno 32] the worker has gone\n"


def test_a_mask_by_hand_is_a_file_and_the_measurement_keeps_its_own(bundle, photographs, mask, tmp_path, capsys):
    assert main(["simulate", "csmri", "--images", str(photographs), "--out", str(tmp_path), "--set", "ratio=0.5"]) == 0
    y, x = tmp_path / "camera.npz", tmp_path / "x.npy"
    reconstruct = ["reconstruct", str(bundle), "--measurement", str(y), "--out", str(x)]
    found = []
    for settings in ([], ["mask=radial"], [f"mask={y}"]):  # a kind of drawn mask is no mask; the file holds its own
        options = [word for setting in settings for word in ("--set", setting)]
        assert main([*reconstruct, *options]) == 0
        found.append(io.read_arrays(x)["y"])
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert capsys.readouterr().err.count("--set mask=radial has no effect") == 1


def test_a_kernel_and_a_scale_by_hand_go_before_those_of_the_measurement(photographs, tmp_path, capsys):
    def reconstructed(measurement: str, *settings: str) -> np.ndarray:
        options = [word for setting in settings for word in ("--set", setting)]
        y, x = str(tmp_path / measurement / "camera.npz"), str(tmp_path / "x.npy")
        assert main(["reconstruct", "released:superres-gray", "--measurement", y, "--out", x, *options]) == 0
        return io.read_arrays(x)["y"]

    for name, settings in (("motion", ["--set", "kernel=motion"]), ("gaussian", ["--set", "kernel=gaussian"])):
        arguments = ["--images", str(photographs), "--out", str(tmp_path / name), "--set", "noise=0", *settings]
        assert main(["simulate", "superres", *arguments, "--set", "scale=4"]) == 0
    assert not np.allclose(reconstructed("motion", "kernel=gaussian"), reconstructed("motion"), atol=0.01)
    assert np.array_equal(reconstructed("gaussian", "kernel=gaussian"), reconstructed("gaussian"))
    # The model was trained at scale 2, the file says 4.
    assert reconstructed("gaussian").shape == (40, 48)
    assert reconstructed("gaussian", "scale=3").shape == (30, 36)
    capsys.readouterr()
    reconstructed("motion", "kernel=motion", "seed=3")
    told = capsys.readouterr().err
    assert "--set kernel=motion has no effect" in told
    assert "--set seed=3 has no effect" in told


@pytest.mark.parametrize("command", [["simulate", "superres"], ["evaluate", "released:superres-gray"]])
def test_a_picture_that_does_not_fit_is_named_before_anything_is_written(command, tmp_path, capsys):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    for name, size in (("a", (32, 32)), ("b", (32, 33))):
        io.write_image(pictures / f"{name}.png", np.random.default_rng(0).random(size))
    assert failure(capsys, *command, "--images", pictures, "--out", out).startswith("elder: b: scale=2 must divide")
    assert not out.exists()


def test_an_evaluation_that_is_ended_leaves_no_metrics_of_an_earlier_one(photographs, tmp_path, capsys, monkeypatch):
    arguments = ["evaluate", "released:denoise-red", "--images", photographs, "--out", tmp_path, "--limit", "2"]
    assert main([str(word) for word in arguments]) == 0
    capsys.readouterr()

    def ended(*_):
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr(io, "write_image", ended)
    assert "the disk is full" in failure(capsys, *arguments)
    assert not (tmp_path / "metrics.json").exists()


def test_a_picture_without_ssim_is_named_before_anything_is_written(photographs, tmp_path, capsys):
    io.write_image(tmp_path / "pictures" / "tiny.png", np.full((5, 40), 0.5))
    where = ("--images", tmp_path / "pictures", "--out", tmp_path / "out")
    told = failure(capsys, "evaluate", "released:denoise-red", *where)
    assert told == "elder: tiny: SSIM compares windows of 7x7 pixels; a picture of 5x40 is too small"


def test_slices_keep_their_numbers_where_others_are_empty(tmp_path, capsys):
    picture = np.random.default_rng(0).random((24, 24)).astype(np.float32)
    empty = np.zeros_like(picture)
    for name, slices in (("head", [empty, empty, picture, picture.T, empty]), ("knee", [empty, picture])):
        (tmp_path / "in").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "in" / f"{name}.tif", np.stack(slices), photometric="minisblack")
    out = tmp_path / "out"
    assert main(["simulate", "denoise", "--images", str(tmp_path / "in"), "--out", str(out), "--set", "noise=0"]) == 0
    assert sorted(path.stem for path in out.iterdir()) == ["head-2", "head-3", "knee-1"]
    np.testing.assert_allclose(io.read_arrays(out / "head-3.npz")["y"], picture.T, atol=1e-6)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "denoise", "--set", f"seed={10**23}"], "at most 64 bits"),
        (["simulate", "ct", "--set", "offset=1e300"], "none of the rays meets the picture"),
    ],
)
def test_numbers_beyond_what_means_something_are_refused(arguments, message, photographs, tmp_path, capsys):
    assert message in failure(capsys, *arguments, "--images", photographs, "--out", tmp_path / "out")


@pytest.mark.parametrize("white", ["1e39", "1e-50"])
def test_a_value_of_white_that_float32_does_not_hold_is_refused(white, tmp_path, capsys):
    np.save(tmp_path / "y.npy", np.full((16, 16), 0.5))
    how = ("--measurement", tmp_path / "y.npy", "--out", tmp_path / "x.npy", "--data-range", white)
    assert "a positive number that float32 holds" in failure(capsys, "reconstruct", "released:denoise-red", *how)


def test_a_file_may_hold_more_than_the_operator_needs(bundle, tmp_path, capsys):
    """In a file, a further array is told and ignored: it may be the picture itself, or notes."""
    y, out = np.ones((16, 16), np.complex64), tmp_path / "x.npy"
    np.savez(tmp_path / "y.npz", y=y, mask=np.ones((16, 16)), truth=y.real)
    assert main(["reconstruct", str(bundle), "--measurement", str(tmp_path / "y.npz"), "--out", str(out)]) == 0
    assert "truth is no argument of the operator of csmri, and ignored" in capsys.readouterr().err
