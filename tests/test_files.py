"""Reading, and writing whole or not at all."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import skimage.io
import tifffile

from elder import UserError, io


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.json"
    io.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        io.write_json(path, {"a": object()})
    assert io.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_floating_point_tiff_keeps_every_digit(tmp_path):
    image = np.random.default_rng(0).random((9, 7), dtype=np.float32)
    io.write_image(tmp_path / "x.tif", image)
    assert np.array_equal(io.read_image(tmp_path / "x.tif"), image)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_integers_are_divided_by_their_range(dtype, top, tmp_path):
    skimage.io.imsave(tmp_path / "x.png", np.array([[0, top], [top // 5, 0]], dtype), check_contrast=False)
    assert io.read_image(tmp_path / "x.png") == pytest.approx(np.array([[0, 1], [0.2, 0]]), abs=1e-6)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".tif"])
def test_a_measurement_from_each_format(suffix, tmp_path):
    y = np.random.default_rng(0).random((5, 6)).astype(np.float32)
    path = tmp_path / f"y{suffix}"
    if suffix == ".npy":
        np.save(path, y)
    elif suffix == ".npz":
        np.savez(path, y=y)
    elif suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["y"] = y
    else:
        tifffile.imwrite(path, y)
    assert np.array_equal(io.read_arrays(path)["y"], y)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".mat", ".png", ".tif"])
def test_a_corrupt_file_is_named(suffix, tmp_path):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"not what the name says" * 9)
    with pytest.raises(UserError, match=f"broken{suffix}: corrupt"):
        io.read_arrays(path)


def test_pickled_arrays_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="corrupt"):
        io.read_arrays(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.array([[0.1, np.nan]], np.float32), "NaN"),
        (np.array([[0.0, 300.0]], np.float32), "values from 0 to 300"),
        (np.zeros((2, 3, 4, 5), np.float32), "must be"),
    ],
)
def test_a_bad_picture_is_named(image, message, tmp_path):
    tifffile.imwrite(tmp_path / "bad.tif", image)
    with pytest.raises(UserError, match=rf"bad\.tif.*{message}"):
        io.read_image(tmp_path / "bad.tif")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no picture"):
        io.list_sources(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        io.list_sources(tmp_path / "absent")
