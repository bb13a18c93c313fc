"""Clean images from every kind of file, and splits that do not leak."""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
import scipy.io
import skimage
import tifffile
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from skimage.transform import resize

from elder import UserError, io
from elder.errors import DataWarning
from stages.prepare import cropped


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    """Five smooth slices, 24x20, values to 900."""
    rng = np.random.default_rng(0)
    return np.stack([900 * np.asarray(resize(rng.random((6, 5)), (24, 20))) for _ in range(5)])


def write_dicom(path: Path, image: np.ndarray) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = image.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelData = image.astype(np.uint16).tobytes()
    data.save_as(path, enforce_file_format=True)


def write(path: Path, volume: np.ndarray) -> None:
    kind = io.kind_of(path)
    if kind == ".npy":
        np.save(path, volume)
    elif kind == ".npz":
        np.savez(path, images=volume, other=np.zeros(3))
    elif kind == ".mat":
        scipy.io.savemat(path, {"volume": volume})
    elif kind == ".h5":
        with h5py.File(path, "w") as file:
            file["reconstruction_rss"] = volume
            file["ismrmrd_header"] = np.zeros(4)
    else:
        # Slices on the last axis, each turned as scanners store them.
        nibabel.save(nibabel.Nifti1Image(np.rot90(volume.transpose(1, 2, 0), -1), np.eye(4)), path)


@pytest.mark.parametrize("name", ["v.npy", "v.npz", "v.mat", "v.h5", "v.nii", "v.nii.gz"])
def test_volumes_give_their_slices(name, volume, tmp_path):
    write(tmp_path / name, volume)
    found = io.read_images(tmp_path / name, scaling="max")
    assert len(found) == 5
    for image, expected in zip(found, volume / volume.max(), strict=True):
        assert image.dtype == np.float32
        assert image == pytest.approx(expected, abs=1e-5)
    middle = io.read_images(tmp_path / name, scaling="max", slices=3)
    assert [m.tobytes() for m in middle] == [f.tobytes() for f in found[1:4]]
    with pytest.raises(UserError, match=r"must lie in \[0, 1\]; choose the scaling max"):
        io.read_images(tmp_path / name)


def test_a_dicom_file_is_an_image(volume, tmp_path):
    write_dicom(tmp_path / "s.dcm", volume[0])
    (image,) = io.read_images(tmp_path / "s.dcm", scaling="max")
    expected = volume[0].astype(np.uint16)
    assert image == pytest.approx(expected / expected.max(), abs=1e-6)
    with pytest.warns(DataWarning, match="fill 1.2% of"):
        (by_type,) = io.read_images(tmp_path / "s.dcm")
    assert by_type == pytest.approx(expected / 65535, abs=1e-6)
    assert pydicom.dcmread(tmp_path / "s.dcm").Rows == 24


def test_fastmri_k_space_becomes_the_root_sum_of_squares(volume, tmp_path):
    """Two coils whose squared sensitivities sum to one give the picture back."""
    ramp = np.linspace(0, np.pi / 2, volume.shape[-1])
    coils = volume[:, None] * np.stack([np.cos(ramp), 1j * np.sin(ramp)])[None, :, None]
    axes = (-2, -1)
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(coils, axes), norm="ortho"), axes)
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file["kspace"] = kspace.astype(np.complex64)
        file["mask"] = np.ones(20)
    found = np.stack(io.read_images(tmp_path / "file.h5", scaling="max"))
    assert found == pytest.approx(volume / volume.max(), abs=1e-4)


def test_16_bits_stay_16_bits(tmp_path):
    image = np.arange(24 * 20, dtype=np.uint16).reshape(24, 20) * 100
    tifffile.imwrite(tmp_path / "deep.tif", image)
    (found,) = io.read_images(tmp_path / "deep.tif")
    assert found == pytest.approx(image / 65535)
    assert len(np.unique(found)) == image.size


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.nii", b"nothing", "a.nii: corrupt or not a .nii file"),
        ("a.dcm", b"nothing", "a.dcm: corrupt or not a .dcm file"),
        ("a.h5", b"nothing", "a.h5: corrupt or not a .h5 file"),
        ("a.txt", b"nothing", "a.txt: can't read .txt"),
    ],
)
def test_a_bad_file_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        io.read_images(tmp_path / name)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.nii").write_bytes(b"nothing")
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(UserError, match=r"needs nibabel; install elder\[formats\]"):
        io.read_images(tmp_path / "a.nii")


def photographs(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        picture = io.read_image(Path(skimage.__file__).parent / "data" / name)
        gray = picture if picture.ndim == 2 else picture.mean(-1)
        target = folder / Path(name).with_suffix(".tif")
        tifffile.imwrite(
            target, np.round(np.asarray(resize(gray, (48, 56), anti_aliasing=True)) * 65535).astype(np.uint16)
        )


NAMES = ("camera.png", "coins.png", "moon.png", "brick.png", "gravel.png", "coffee.png")


def prepare(project, check: bool = True, **settings):
    project.change("prepare", source="folder", **settings)
    return project.run("dvc", "repro", "prepare", check=check)


def test_a_near_duplicate_in_two_splits_is_refused(project):
    raw = project.folder / "data" / "raw"
    photographs(raw, NAMES)
    prepare(project)
    for index in range(6):  # smaller, darker and compressed: the same picture to the eye, in other bytes
        darker = resize(io.read_image(raw / f"{Path(NAMES[index]).stem}.tif"), (44, 52), anti_aliasing=True) * 0.9
        io.write_image(raw / f"again{index}.jpg", np.asarray(darker))
    done = prepare(project, check=False)
    assert done.returncode != 0
    assert "look the same: remove one" in done.stderr
    listed = "".join(
        f"{name},{part}\n"
        for n, part in zip(NAMES, ("train", "train", "train", "train", "validation", "test"), strict=True)
        for name in (f"{Path(n).stem}.tif", f"again{NAMES.index(n)}.jpg")
    )
    (project.folder / "split.csv").write_text(f"name,split\n{listed}")
    prepare(project, split="split.csv")
    manifest = io.read_json(project.folder / "data" / "prepared" / "manifest.json")["images"]
    assert {row["name"]: row["split"] for row in manifest}["coffee"] == "test"


def test_a_split_by_folders_and_its_mistakes(project):
    raw = project.folder / "data" / "raw"
    for part, names in {"train": NAMES[:3], "validation": NAMES[3:4], "test": NAMES[4:]}.items():
        (raw / part).mkdir()
        photographs(raw / part, names)
    prepare(project, split="folders")
    manifest = io.read_json(project.folder / "data" / "prepared" / "manifest.json")["images"]
    assert {row["name"]: row["split"] for row in manifest}["gravel"] == "test"
    (raw / "spare").mkdir()
    photographs(raw / "spare", ("astronaut.png",))
    done = prepare(project, check=False, split="folders")
    assert "spare/astronaut.tif has spare" in done.stderr
    done = prepare(project, check=False, split="nowhere.csv")
    assert "prepare.split=nowhere.csv must be random, folders or a CSV file that exists" in done.stderr
    (project.folder / "short.csv").write_text("file,split\na.tif,train\n")
    done = prepare(project, check=False, split="short.csv")
    assert "lacks the column name" in done.stderr


def test_every_kind_of_file_goes_from_preparation_to_evaluation(project, volume):
    """16-bit TIFF, a NIfTI volume and an HDF5 file in one source, on the tiny settings."""
    raw = project.folder / "data" / "raw"
    photographs(raw, NAMES[:2])
    rng = np.random.default_rng(1)
    for name in ("brain.nii.gz", "knee.h5"):
        write(raw / name, np.stack([900 * np.asarray(resize(rng.random((9, 8)), (40, 44), order=1)) for _ in range(4)]))
    project.only_least_squares()
    prepare(project, scaling="max", slices=2)
    manifest = io.read_json(project.folder / "data" / "prepared" / "manifest.json")["images"]
    assert {row["name"] for row in manifest} == {"camera", "coins", "brain-1", "brain-2", "knee-1", "knee-2"}
    project.run("dvc", "repro", "evaluate")
    assert io.read_json(project.folder / "reports" / "cells" / "csmri-least_squares" / "metrics.json")["finetuned"]


def test_sides_of_validation_and_test_are_cropped_to_a_multiple():
    """321x481, which super-resolution by 2 or 3 can't decimate, to the middle 318x480."""
    image = np.random.default_rng(0).random((321, 481, 3)).astype(np.float32)
    assert np.array_equal(cropped(image, 6), image[1:319, :480])
    assert np.array_equal(cropped(image, 1), image)
    with pytest.raises(UserError, match=r"prepare\.multiple=6: an image of 5x481 is smaller"):
        cropped(image[:5], 6)
