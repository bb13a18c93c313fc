"""Bad input through the command line and the stages: one line on stderr, exit code 1, nothing left half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io
import tifffile
from conftest import stage
from PIL import Image

from elder import cli

GRAY = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
MASK, K = GRAY > 0.5, GRAY * 1j
COILS = np.ones((2, 8, 8), complex)
NOISE = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)


def saved(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def raw(path: Path, content: bytes = b"no such thing") -> Path:
    path.write_bytes(content)
    return path


def cut(path: Path) -> Path:
    """The first half of what a file holds."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def png(path: Path, values: np.ndarray = (GRAY * 255).astype(np.uint8)) -> Path:  # noqa: B008
    Image.fromarray(values).save(path)
    return path


def hdf5(path: Path, **arrays) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def mat(path: Path, **arrays) -> Path:
    scipy.io.savemat(path, arrays)
    return path


def zipped(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def tiff(path: Path, values: np.ndarray, **options) -> Path:
    tifffile.imwrite(path, values, **options)
    return path


def nifti(path: Path, values: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return path


# Files that are no clean pictures: what is written, and what the line says of it.
PICTURES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty png": (lambda d: raw(d / "a.png", b""), "a.png: corrupt"),
    "half a png": (lambda d: cut(png(d / "a.png", NOISE)), "a.png: corrupt"),
    "text as jpeg": (lambda d: raw(d / "a.jpg"), "a.jpg: corrupt"),
    "text as tiff": (lambda d: raw(d / "a.tif"), "a.tif: corrupt"),
    "text as bmp": (lambda d: raw(d / "a.bmp"), "a.bmp: corrupt"),
    "text as webp": (lambda d: raw(d / "a.webp"), "a.webp: corrupt"),
    "text as jp2": (lambda d: raw(d / "a.jp2"), "a.jp2: corrupt"),
    "text as npy": (lambda d: raw(d / "a.npy"), "a.npy: corrupt"),
    "text as npz": (lambda d: raw(d / "a.npz"), "a.npz: corrupt"),
    "text as mat": (lambda d: raw(d / "a.mat"), "a.mat: corrupt"),
    "text as h5": (lambda d: raw(d / "a.h5"), "a.h5: corrupt"),
    "text as nifti": (lambda d: raw(d / "a.nii"), "a.nii: corrupt"),
    "text as dicom": (lambda d: raw(d / "a.dcm"), "a.dcm: corrupt"),
    "half a nifti": (lambda d: cut(nifti(d / "a.nii", np.zeros((20, 20, 20)))), "a.nii: corrupt"),
    "half an hdf5": (lambda d: cut(hdf5(d / "a.h5", image=GRAY)), "a.h5: corrupt"),
    "NaN": (lambda d: saved(d / "a.npy", GRAY * np.nan), "holds NaN"),
    "infinity": (lambda d: tiff(d / "a.tif", GRAY / 0.0), "holds NaN or infinite"),
    "0 to 255 in floating point": (lambda d: saved(d / "a.npy", GRAY * 255), "must lie in [0, 1]"),
    "negative": (lambda d: saved(d / "a.npy", -GRAY), "must lie in [0, 1]"),
    "64-bit integers": (lambda d: saved(d / "a.npy", np.arange(100).reshape(10, 10)), "nothing says which is white"),
    "pickled": (lambda d: saved(d / "a.npy", np.array([{}], dtype=object)), "a.npy: corrupt"),
    "text in an array": (lambda d: saved(d / "a.npy", np.array([["a", "b"]] * 2)), "holds no array of numbers"),
    "one axis": (lambda d: saved(d / "a.npy", GRAY[0]), "must hold pictures"),
    "no axis": (lambda d: saved(d / "a.npy", np.array(0.5)), "must hold pictures"),
    "no row": (lambda d: saved(d / "a.npy", GRAY[:0]), "holds no values"),
    "one column": (lambda d: saved(d / "a.npy", GRAY[:, :1]), "too small"),
    "two arrays": (lambda d: zipped(d / "a.npz", a=GRAY, b=GRAY), "name the images"),
    "slices last": (lambda d: saved(d / "a.npy", np.zeros((32, 32, 7))), "say which by axes"),
    "colors first": (lambda d: saved(d / "a.npy", np.zeros((3, 32, 32))), "say which by axes"),
    "a structure": (lambda d: mat(d / "a.mat", s={"x": 1.0}), "holds no array of numbers"),
    "cells": (lambda d: mat(d / "a.mat", c=np.array([GRAY, GRAY[1:]], dtype=object)), "holds a cell array"),
    "hdf5 of nothing": (lambda d: hdf5(d / "a.h5"), "holds no array of numbers"),
    "hdf5 of an empty array": (lambda d: hdf5(d / "a.h5", image=h5py.Empty("f4")), "holds no array of numbers"),
    "empty hdf5": (lambda d: raw(d / "a.h5", b""), "a.h5: corrupt or not a .h5 file (it is empty)"),
    "hdf5 of text": (lambda d: hdf5(d / "a.h5", header="text"), "holds no array of numbers"),
    "masked k-space": (lambda d: hdf5(d / "a.h5", kspace=COILS, mask=np.arange(8) % 2), "no clean picture"),
    "k-space of two axes": (lambda d: hdf5(d / "a.h5", kspace=COILS[0]), "kspace must be"),
    "nifti of one axis": (lambda d: nifti(d / "a.nii", np.zeros(7)), "must hold a volume"),
    "Hounsfield units": (lambda d: nifti(d / "a.nii", np.full((8, 8, 8), -900, np.int16)), "nothing says which is"),
    "many channels": (lambda d: tiff(d / "a.tif", np.zeros((8, 8, 5)), photometric="rgb"), "5 channels are neither"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_a_file_that_is_no_picture(name, bundle, tmp_path, capfd, monkeypatch):
    """Through `elder evaluate`, and through `prepare`, which names the same file in one line as well."""
    write, message = PICTURES[name]
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write(folder)
    for part in ("1", "2", "3"):
        png(folder / f"z{part}.png", (np.random.default_rng(int(part)).random((32, 32)) * 255).astype(np.uint8))
    refused(capfd, message, lambda: cli.main(["evaluate", str(bundle), "--images", str(folder), "--out", str(out)]))
    assert not out.exists()
    change = {"prepare": {"source": "folder", "folder": str(folder)}}
    refused(capfd, message, lambda: stage(monkeypatch, tmp_path, change, "prepare", "--out", str(out)))
    assert not out.exists()


# Measurements that do not fit a model for csmri: what is written, further arguments, what the line says.
MEASUREMENTS: dict[str, tuple[Callable[[Path], Path], list[str], str]] = {
    "missing": (lambda d: d / "none.npy", [], "no such file"),
    "text": (lambda d: text(d / "y.txt", "y"), [], "can't read .txt"),
    "no y": (lambda d: zipped(d / "y.npz", x=GRAY, z=GRAY), [], "holds x, z but no y"),
    "no mask": (lambda d: saved(d / "y.npy", GRAY * 1j), [], "needs the mask"),
    "real": (lambda d: zipped(d / "y.npz", y=GRAY, mask=MASK), [], "must be complex"),
    "NaN": (lambda d: zipped(d / "y.npz", y=K * np.nan, mask=MASK), [], "NaN or infinite"),
    "another size": (lambda d: zipped(d / "y.npz", y=K, mask=MASK[1:]), [], "give the mask that sampled it"),
    "gray mask": (lambda d: zipped(d / "y.npz", y=K, mask=GRAY), [], "must hold two values"),
    "empty mask": (lambda d: zipped(d / "y.npz", y=K, mask=GRAY * 0), [], "must hold two values"),
    "mask of one axis": (lambda d: zipped(d / "y.npz", y=K, mask=np.ones(3)), [], "must be (h, w)"),
    "mask of text": (lambda d: zipped(d / "y.npz", y=K, mask=np.array([["a"]])), [], "needs the mask"),
    "one axis": (lambda d: zipped(d / "y.npz", y=GRAY[0] * 1j, mask=MASK), [], "must be (h, w)"),
    "three colors": (lambda d: zipped(d / "y.npz", y=np.stack([GRAY * 1j] * 3), mask=MASK), [], "have 1 channel"),
    "NaN in the mask": (
        lambda d: zipped(d / "y.npz", y=K, mask=np.where(MASK, np.nan, 0)), [], "NaN or infinite"
    ),
    "no data range": (lambda d: zipped(d / "y.npz", y=K, mask=MASK), ["--data-range", "0"], "data_range=0.0 must"),
    "unknown setting": (lambda d: zipped(d / "y.npz", y=K, mask=MASK), ["--set", "masks=x"], "unknown setting 'masks'"),
    "another type": (lambda d: zipped(d / "y.npz", y=K, mask=MASK), ["--set", "ratio=many"], "must be a number"),
    "no truth value": (lambda d: zipped(d / "y.npz", y=K, mask=MASK), ["--set", "centered=2"], "must be true or false"),
    "mask file missing": (lambda d: zipped(d / "y.npz", y=K), ["--set", "mask=none.npy"], "neither one of"),
}  # fmt: skip


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_measurement_that_does_not_fit(name, bundle, tmp_path, capfd):
    write, options, message = MEASUREMENTS[name]
    out = tmp_path / "x.png"
    arguments = ["reconstruct", str(bundle), "--measurement", str(write(tmp_path)), "--out", str(out), *options]
    refused(capfd, message, lambda: cli.main(arguments))
    assert not out.exists()


# Bundles that are none: what stands in config.json, and what the line says.
BUNDLES: dict[str, tuple[str, str]] = {
    "not JSON": ("{", "not valid JSON"),
    "a list": ("[]", "the bundle is broken"),
    "a number": ("7", "the bundle is broken"),
    "no format": ("{}", "bundle format None"),
    "no regularizer": (json.dumps({"format": 1}), "the bundle is broken"),
    "unknown regularizer": (json.dumps({"format": 1, "regularizer": {"name": "best"}}), "best"),
}


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_that_is_none(name, bundle, photographs, tmp_path, capfd):
    content, message = BUNDLES[name]
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "weights.safetensors").write_bytes((bundle / "weights.safetensors").read_bytes())
    (broken / "config.json").write_text(content)
    out = tmp_path / "out"
    refused(
        capfd, message, lambda: cli.main(["evaluate", str(broken), "--images", str(photographs), "--out", str(out)])
    )
    assert not out.exists()


# Changes of params.yaml that no stage could use, and what the line says.
SETTINGS: dict[str, tuple[dict, str]] = {
    "unknown section": ({"prepared": {}}, "prepared"),
    "unknown setting": ({"prepare": {"sise": 3}}, "prepare.sise"),
    "another type": ({"prepare": {"seed": "one"}}, "prepare.seed"),
    "a scaling that is none": ({"prepare": {"scaling": "most"}}, "scaling"),
    "a window upside down": ({"prepare": {"scaling": [2, 1]}}, "scaling"),
    "axes that are none": ({"prepare": {"axes": "xy"}}, "prepare.axes"),
    "shares above one": ({"prepare": {"test_share": 1.2}}, "test_share"),
    "home": ({"prepare": {"folder": "~/photos"}}, "DVC does not expand ~"),
    "a negative step": ({"finetune": {"steps": -1}}, "finetune.steps"),
    "an unknown loss": ({"finetune": {"loss": "mae"}}, "finetune.loss"),
    "an unknown problem": ({"problems": {"mri": {}}}, "mri"),
    "an unknown mask": ({"problems": {"csmri": {"mask": "spiral"}}}, "mask=spiral"),
    "an unknown device": ({"compute": {"device": "tpu"}}, "tpu"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_no_stage_could_use(name, tmp_path, capfd, monkeypatch):
    change, message = SETTINGS[name]
    out = tmp_path / "out"
    refused(capfd, message, lambda: stage(monkeypatch, tmp_path, change, "prepare", "--out", str(out)))
    assert not out.exists()


# Sources that can't be split: files, settings of prepare, what the line says.
SOURCES: dict[str, tuple[list[str], dict, str]] = {
    "empty": ([], {}, "holds no picture"),
    "two files": (["a.png", "b.png"], {}, "need 3"),
    "no such list": (["a.png", "b.png", "c.png"], {"split": "none.csv"}, "CSV file that exists"),
    "no folders": (["a.png", "b.png", "c.png"], {"split": "folders"}, "wants the images in train, validation, test"),
    "one group": (["p/a.png", "p/b.png", "p/c.png"], {"group": "folder"}, "need 3"),
    "no expression": (["a.png", "b.png", "c.png"], {"group": "("}, "neither folder nor a regular expression"),
    "no match": (["a.png", "b.png", "c.png"], {"group": "patient([0-9]+)"}, "does not match a.png"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_can_not_be_split(name, tmp_path, capfd, monkeypatch):
    files, chosen, message = SOURCES[name]
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for index, file in enumerate(files):
        (folder / file).parent.mkdir(exist_ok=True)
        png(folder / file, (np.random.default_rng(index).random((32, 32)) * 255).astype(np.uint8))
    change = {"prepare": {"source": "folder", "folder": str(folder), **chosen}}
    refused(capfd, message, lambda: stage(monkeypatch, tmp_path, change, "prepare", "--out", str(out)))
    assert not out.exists()


def test_there_are_enough_of_them():
    count = 2 * len(PICTURES) + sum(map(len, (MEASUREMENTS, BUNDLES, SETTINGS, SOURCES)))
    print(f"{count} bad inputs")
    assert count >= 60


def refused(capfd, message: str, work: Callable[[], int]) -> None:
    """Assert that the work ends with exit code 1 and one line on stderr that holds the message."""
    assert work() == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if ": warning: " not in line]
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert "unexpected" not in lines[0]
