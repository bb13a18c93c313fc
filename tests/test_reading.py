"""Files of the field, written by other libraries than those that read them, give the values that they mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
import scipy.io
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLSLossless, SecondaryCaptureImageStorage, generate_uid

from elder import UserError, io
from elder.errors import DataWarning

RAMP = np.linspace(0, 255, 20 * 24).round().astype(np.uint8).reshape(20, 24)
COLORS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1)
HOUNSFIELD = np.linspace(-1000, 2000, 20 * 24).round().astype(np.int16).reshape(20, 24)
VOLUME = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1], RAMP // 2, RAMP // 3]).astype(np.float32) / 255


def dicom(path: Path, pixels: np.ndarray, *, bits: int = 16, syntax: UID = ExplicitVRLittleEndian, **tags) -> Path:
    """A DICOM file of one frame; further tags by their keywords."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = syntax
    data = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated, data.BitsStored, data.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def nifti(path: Path, slices: np.ndarray, affine: np.ndarray | None = None, **header) -> Path:
    """A NIfTI file whose slices (n, h, w) are stored as scanners do, from left to right and back to front."""
    stored = np.rot90(slices.transpose(1, 2, 0), -1)
    image = nibabel.Nifti1Image(stored, np.eye(4) if affine is None else affine)
    if header:
        image.header.set_slope_inter(**header)
    nibabel.save(image, path)
    return path


def tiff(path: Path, values: np.ndarray, **options) -> Path:
    tifffile.imwrite(path, values, **options)
    return path


def picture(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def matlab(path: Path, **arrays: Any) -> Path:
    scipy.io.savemat(path, arrays)
    return path


def array(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def packed(path: Path, values: np.ndarray, bits: int) -> Path:
    """A TIFF file of so many bits a pixel, which no writer here makes: bytes that are then called by their bits."""
    digits = np.unpackbits(values.astype(">u2")[..., None].view(np.uint8), axis=-1)[..., -bits:]
    rows = np.packbits(digits.reshape(len(values), -1), axis=1)
    tifffile.imwrite(path, rows, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["ImageWidth"].overwrite(values.shape[1])
        file.pages[0].tags["BitsPerSample"].overwrite(bits)
    return path


def retyped(path: Path, kind: int) -> Path:
    """A TIFF file under a compression that tifffile alone can't read, whose numbers are of another kind."""
    Image.fromarray(RAMP).save(path, compression="tiff_lzw", tiffinfo={339: kind})
    return path


def sixteen_bit_colors(path: Path) -> Path:
    """Colors of 16 bits that claim a compression that tifffile alone can't read."""
    tifffile.imwrite(path, COLORS.astype(np.uint16) * 257, photometric="rgb", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(5)
    return path


def cmyk() -> Image.Image:
    return Image.fromarray(COLORS).convert("CMYK")


def palette() -> Image.Image:
    image = Image.fromarray(RAMP // 64, mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 255, 128, 0])
    return image


PALETTE = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [255, 128, 0]])[RAMP // 64] / 255
GRAY, COLOR = RAMP / 255, COLORS / 255

# What is written; how it is read; the pictures that must come.
FILES: dict[str, tuple[Callable[[Path], Path], dict, list[np.ndarray]]] = {
    "png, 8 bits": (lambda d: picture(d / "a.png", Image.fromarray(RAMP)), {}, [GRAY]),
    "png, 16 bits": (
        lambda d: picture(d / "a.png", Image.fromarray(RAMP.astype(np.uint16) * 257)), {}, [GRAY]
    ),
    "png, 1 bit": (lambda d: picture(d / "a.png", Image.fromarray(RAMP > 99)), {}, [(RAMP > 99) * 1.0]),
    "png, a palette": (lambda d: picture(d / "a.png", palette()), {}, [PALETTE]),
    "png, opaque": (lambda d: picture(d / "a.png", Image.fromarray(COLORS).convert("RGBA")), {}, [COLOR]),
    "bmp": (lambda d: picture(d / "a.bmp", Image.fromarray(COLORS)), {}, [COLOR]),
    "webp": (lambda d: picture(d / "a.webp", Image.fromarray(COLORS), lossless=True), {}, [COLOR]),
    "jp2": (lambda d: picture(d / "a.jp2", Image.fromarray(RAMP)), {}, [GRAY]),
    "tiff of a camera, CMYK": (
        lambda d: picture(d / "a.tif", cmyk()), {}, [np.asarray(cmyk().convert("RGB")) / 255]
    ),
    "tiff, a palette": (lambda d: picture(d / "a.tif", palette()), {}, [PALETTE]),
    "tiff, white is zero": (
        lambda d: tiff(d / "a.tif", 255 - RAMP, photometric="miniswhite"), {}, [GRAY]
    ),
    "tiff, LZW": (lambda d: picture(d / "a.tif", Image.fromarray(RAMP), compression="tiff_lzw"), {}, [GRAY]),
    **{
        f"tiff, white is zero, {values.dtype}, {compression}": (
            lambda d, values=values, compression=compression: picture(
                d / "a.tif", Image.fromarray(values), tiffinfo={262: 0}, compression=compression
            ),
            {},
            [1 - GRAY],
        )
        for values in (RAMP.astype(np.uint16) * 257, GRAY.astype(np.float32))
        for compression in (None, "tiff_lzw")
    },
    "tiff, complex": (
        lambda d: tiff(d / "a.tif", (GRAY * np.exp(1j * GRAY)).astype(np.complex64)), {}, [GRAY]
    ),
    "tiff, 4 bits": (
        lambda d: packed(d / "a.tif", RAMP // 16, 4), {}, [(RAMP // 16) / 15]
    ),
    "tiff, 16 bits": (lambda d: tiff(d / "a.tif", RAMP.astype(np.uint16) * 257), {}, [GRAY]),
    "tiff, float": (lambda d: tiff(d / "a.tif", GRAY.astype(np.float32)), {}, [GRAY]),
    **{
        f"tiff, turned, {compression}": (
            lambda d, compression=compression: picture(
                d / "a.tif", Image.fromarray(RAMP), tiffinfo={274: 6}, compression=compression
            ),
            {},
            [np.rot90(GRAY, -1)],
        )
        for compression in (None, "tiff_lzw")
    },
    "tiff, mirrored along the diagonal": (
        lambda d: tiff(d / "a.tif", RAMP, extratags=[(274, "H", 1, 5, True)]), {}, [GRAY.T]
    ),
    "tiff, Zstandard": (lambda d: picture(d / "a.tif", Image.fromarray(RAMP), compression="zstd"), {}, [GRAY]),
    "tiff, planes": (
        lambda d: tiff(d / "a.tif", np.moveaxis(COLORS, -1, 0), photometric="rgb", planarconfig="separate"), {}, [COLOR]
    ),
    **{
        f"tiff, {n} gray pages": (
            lambda d, n=n: tiff(d / "a.tif", VOLUME[:n], photometric="minisblack"), {}, list(VOLUME[:n])
        )
        for n in (2, 3, 4, 5)
    },
    "tiff, 3 pages, one after the other": (
        lambda d: picture(
            d / "a.tif",
            Image.fromarray(RAMP),
            save_all=True,
            append_images=[Image.fromarray(RAMP[::-1].copy()), Image.fromarray(RAMP // 2)],
        ),
        {},
        [GRAY, GRAY[::-1], (RAMP // 2) / 255],
    ),
    "npy, colors last": (lambda d: array(d / "a.npy", COLORS), {}, [COLOR]),
    "npy, big endian": (lambda d: array(d / "a.npy", (RAMP.astype(np.uint16) * 257).astype(">u2")), {}, [GRAY]),
    "npy, beyond white by rounding": (
        lambda d: array(d / "a.npy", (RAMP * np.float32(1 / 255)).astype(np.float32) * np.float32(1 + 1e-7)), {}, [GRAY]
    ),
    "npy, half precision in a wide window": (
        lambda d: array(d / "a.npy", (GRAY * 60000).astype(np.float16)),
        {"scaling": [-20000, 60000]},
        [(GRAY * 60000 + 20000) / 80000],
    ),
    "npy, RGBA": (lambda d: array(d / "a.npy", np.dstack([COLORS, np.full_like(RAMP, 255)])), {}, [COLOR]),
    "npy, colors first, said so": (
        lambda d: array(d / "a.npy", np.moveaxis(COLORS, -1, 0)), {"axes": "chw"}, [COLOR]
    ),
    "npy, three slices, said so": (lambda d: array(d / "a.npy", VOLUME[:3]), {"axes": "nhw"}, list(VOLUME[:3])),
    "npy, a stack of colors first": (
        lambda d: array(d / "a.npy", np.stack([COLORS, COLORS // 2]).transpose(0, 3, 1, 2)),
        {},
        [COLOR, (COLORS // 2) / 255],
    ),
    "npy, slices last, said so": (
        lambda d: array(d / "a.npy", VOLUME.transpose(1, 2, 0)), {"axes": "hwn"}, list(VOLUME)
    ),
    "npy, wider integers, in a window": (
        lambda d: array(d / "a.npy", RAMP.astype(np.int64)), {"scaling": [0, 255]}, [GRAY]
    ),
    "npy, booleans": (lambda d: array(d / "a.npy", RAMP > 99), {}, [(RAMP > 99) * 1.0]),
    "npy, complex": (lambda d: array(d / "a.npy", GRAY * np.exp(1j * GRAY)), {}, [GRAY]),
    "mat, beside text and a structure": (
        lambda d: matlab(d / "a.mat", im=GRAY, title=np.array("text"), info={"x": 1.0}), {}, [GRAY]
    ),
    "dicom, unsigned": (lambda d: dicom(d / "a.dcm", RAMP, bits=8), {}, [GRAY]),
    "dicom, 12 bits in 16": (
        lambda d: dicom(d / "a.dcm", RAMP.astype(np.uint16) * 16, bits=12), {}, [RAMP / 255 * 4080 / 4095]
    ),
    "dicom, white is zero": (
        lambda d: dicom(d / "a.dcm", 255 - RAMP, bits=8, PhotometricInterpretation="MONOCHROME1"), {}, [GRAY]
    ),
    "dicom, Hounsfield units": (
        lambda d: dicom(
            d / "a.dcm", (HOUNSFIELD + 1024).astype(np.uint16), bits=12, RescaleSlope=1, RescaleIntercept=-1024
        ),
        {"scaling": [-1000, 1000]},
        [((HOUNSFIELD + 1000) / 2000).clip(0, 1)],
    ),
    "dicom, a slope": (
        lambda d: dicom(d / "a.dcm", RAMP, bits=8, RescaleSlope=2.5, RescaleIntercept=0), {}, [GRAY]
    ),
    "dicom, colors": (lambda d: dicom(d / "a.dcm", COLORS, bits=8), {}, [COLOR]),
    "dicom without a suffix": (lambda d: dicom(d / "1.2.840.113", RAMP, bits=8), {}, [GRAY]),
    "dicom of Siemens": (lambda d: dicom(d / "MR.0001.IMA", RAMP, bits=8), {}, [GRAY]),
    "nifti, 8 bits": (lambda d: nifti(d / "a.nii", (VOLUME * 255).round().astype(np.uint8)), {}, list(VOLUME)),
    "nifti, a slope": (
        lambda d: nifti(d / "a.nii.gz", HOUNSFIELD[None], slope=0.5, inter=3.0),
        {"scaling": [-500, 500]},
        [((HOUNSFIELD * 0.5 + 3 + 500) / 1000).clip(0, 1)],
    ),
    "nifti, left and right exchanged": (
        lambda d: nifti(d / "a.nii", VOLUME[:, :, ::-1], np.diag([-1.0, 1, 1, 1])), {}, list(VOLUME)
    ),
    "percentiles of 1 bit": (
        lambda d: picture(d / "a.png", Image.fromarray(RAMP > 99)), {"scaling": "percentile"}, [(RAMP > 99) * 1.0]
    ),
    "nifti, one slice": (
        lambda d: (
            nibabel.save(nibabel.Nifti1Image(np.rot90(GRAY, -1)[::-1], np.diag([-1.0, 1, 1, 1])), d / "a.nii"),
            d / "a.nii",
        )[1],
        {},
        [GRAY],
    ),
    "percentiles": (
        lambda d: array(d / "a.npy", HOUNSFIELD),
        {"scaling": "percentile"},
        [((HOUNSFIELD - np.percentile(HOUNSFIELD, 0.1)) / np.ptp(np.percentile(HOUNSFIELD, (0.1, 99.9)))).clip(0, 1)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_what_it_means(name, tmp_path):
    write, how, expected = FILES[name]
    found = io.read_images(write(tmp_path), **how)
    assert len(found) == len(expected)
    for image, right in zip(found, expected, strict=True):
        assert image.dtype == np.float32
        assert image.shape == right.shape
        assert image == pytest.approx(right, abs=1e-3)


def masked_kspace(path: Path) -> Path:
    """As fastMRI's test files: k-space, the mask that sampled it, and a header in text."""
    with h5py.File(path, "w") as file:
        file["kspace"] = np.fft.fft2(VOLUME).astype(np.complex64)
        file["mask"] = np.arange(24) % 4 == 0
        file["ismrmrd_header"] = "<xml>"
    return path


def test_an_order_of_axes_for_pictures_alone_is_refused(tmp_path):
    paths = [array(tmp_path / "a.npy", np.zeros((4, 5))), tmp_path / "b.png", tmp_path / "c.nii.gz"]
    io.check_axes("hw", paths)
    io.check_axes("", paths[1:])
    with pytest.raises(UserError, match=r"axes=hw: is for arrays, and b\.png, c\.nii\.gz are pictures"):
        io.check_axes("hw", paths[1:])


def test_of_a_large_file_only_the_pictures_are_read(tmp_path, monkeypatch):
    """fastMRI's k-space of 15 coils takes 60 times the memory of its reconstruction."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["kspace"], file["reconstruction_rss"] = np.zeros((5, 4, 20, 24), np.complex64), VOLUME
        file["text"] = "reconstruction_rss"
    read = []
    monkeypatch.setattr(h5py.Dataset, "__array__", recorded(h5py.Dataset.__array__, read))
    assert len(io.read_images(path)) == len(VOLUME)
    assert read == ["/reconstruction_rss"]
    assert io.read_arrays(path).keys() == {"kspace", "reconstruction_rss"}


def recorded(method, names: list[str]):
    def recording(self, *arguments, **options):
        names.append(self.name)
        return method(self, *arguments, **options)

    return recording


def records(path: Path) -> Path:
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((4, 5, 6), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])), np.eye(4)), path
    )
    return path


# What is written; how it is read; what the one line says.
REFUSED: dict[str, tuple[Callable[[Path], Path], dict, str]] = {
    "8-bit values in 64 bits": (lambda d: array(d / "a.npy", RAMP.astype(np.int64)), {}, "nothing says which is white"),
    "Hounsfield units by range": (lambda d: nifti(d / "a.nii", HOUNSFIELD[None]), {}, "nothing says which is white"),
    "Hounsfield units of DICOM by range": (
        lambda d: dicom(d / "a.dcm", HOUNSFIELD, RescaleSlope=1, RescaleIntercept=0), {}, "values from -1000 to 2000"
    ),
    "Hounsfield units by max": (lambda d: array(d / "a.npy", HOUNSFIELD), {"scaling": "max"}, "divided by"),
    "colors first or three slices": (lambda d: array(d / "a.npy", VOLUME[:3]), {}, "may be chw or nhw"),
    "slices last": (lambda d: array(d / "a.npy", np.zeros((64, 64, 10))), {}, "may be nhw or hwn"),
    "strips": (lambda d: array(d / "a.npy", np.zeros((64, 80, 5))), {}, "may be nhw or hwn"),
    "four floating-point channels": (lambda d: array(d / "a.npy", np.zeros((64, 64, 4))), {}, "may be nhw or hwn"),
    "narrow slices": (lambda d: array(d / "a.npy", np.zeros((64, 80, 20))), {}, "may be nhw or hwn"),
    "a span beyond numbers": (
        lambda d: array(d / "a.npy", (GRAY * 2 - 1) * 1.7e308), {"scaling": "percentile"}, "more than numbers can hold"
    ),
    "dicom, a slope of zero": (
        lambda d: dicom(d / "a.dcm", RAMP, bits=8, RescaleSlope=0, RescaleIntercept=0), {}, "must lie in [0, 0]"
    ),
    "channels beside each other": (
        lambda d: tiff(d / "a.tif", COLORS, photometric="minisblack", planarconfig="contig"), {}, "no colors"
    ),
    "channels, compressed": (
        lambda d: compressed_channels(d / "a.ome.tif"), {}, "no colors"
    ),
    "real k-space": (lambda d: kspace(d / "a.h5", np.ones((5, 20, 24, 2))), {}, "kspace must be complex"),
    "k-space with columns left out": (
        lambda d: kspace(d / "a.h5", np.fft.fft2(VOLUME) * (np.arange(24) % 4 == 0)), {}, "holds no clean picture"
    ),
    "five axes": (lambda d: array(d / "a.npy", np.zeros((2, 2, 2, 2, 2))), {}, "must hold pictures"),
    "axes that do not fit": (lambda d: array(d / "a.npy", RAMP), {"axes": "nhw"}, "axes=nhw needs 3 axes"),
    "masked k-space": (lambda d: masked_kspace(d / "a.h5"), {}, "holds no clean picture"),
    "dicom, bits at the top of a word": (
        lambda d: dicom(d / "a.dcm", RAMP.astype(np.uint16) << 8, bits=8, HighBit=15), {}, "8 bits end at HighBit 15"
    ),
    "dicom without pixels": (
        lambda d: (dicom(d / "a.dcm", RAMP, bits=8), strip(d / "a.dcm"))[0], {}, "holds no pixels"
    ),
    "dicom without a decoder": (
        lambda d: (dicom(d / "a.dcm", RAMP, bits=8), recode(d / "a.dcm"))[0], {}, "pyjpegls"
    ),
    "tiff, 12 bits": (lambda d: packed(d / "a.tif", RAMP.astype(int) * 16, 12), {}, "can't read 12 bits, unsigned"),
    "tiff, signed bytes, LZW": (lambda d: retyped(d / "a.tif", 2), {}, "can't read 8 bits, signed"),
    "tiff, colors of 16 bits, LZW": (lambda d: sixteen_bit_colors(d / "a.tif"), {}, "can't read 16 bits, unsigned"),
    "pages of two sizes": (
        lambda d: picture(
            d / "a.tif", Image.fromarray(RAMP), save_all=True, append_images=[Image.fromarray(RAMP[:9])]
        ),
        {},
        "different sizes",
    ),
    "moving pictures": (
        lambda d: picture(
            d / "a.png", Image.fromarray(RAMP), save_all=True, append_images=[Image.fromarray(RAMP // 2)]
        ),
        {},
        "holds 2 frames",
    ),
    "cells": (
        lambda d: matlab(d / "a.mat", images=np.array([RAMP, RAMP[:5]], dtype=object)), {}, "holds a cell array"
    ),
    "text": (lambda d: matlab(d / "a.mat", title=np.array("text")), {}, "holds no array of numbers"),
    "one pixel": (lambda d: array(d / "a.npy", np.zeros((1, 1))), {}, "too small"),
    "no pixel": (lambda d: array(d / "a.npy", np.zeros((0, 5))), {}, "holds no values"),
}  # fmt: skip


def kspace(path: Path, values: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        file["kspace"] = values
    return path


def compressed_channels(path: Path) -> Path:
    """Two channels of a microscope under a compression that tifffile alone can't read."""
    description = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint8" SizeX="24" SizeY="20" SizeC="2" SizeZ="1" SizeT="1">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/><Channel ID="Channel:0:1" SamplesPerPixel="1"/><TiffData/>'
        "</Pixels></Image></OME>"
    )
    Image.fromarray(RAMP).save(
        path,
        compression="tiff_lzw",
        tiffinfo={270: description},
        save_all=True,
        append_images=[Image.fromarray(RAMP[::-1].copy())],
    )
    return path


def strip(path: Path) -> None:
    data = pydicom.dcmread(path)
    del data.PixelData
    data.save_as(path)


def recode(path: Path) -> None:
    """Claim a compression that needs another package."""
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
    data["PixelData"].is_undefined_length = True
    data.save_as(path)


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_told_is_refused_in_one_line(name, tmp_path):
    write, how, message = REFUSED[name]
    path = write(tmp_path)
    with pytest.raises(UserError) as refused:
        io.read_images(path, **how)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"axes": "xyz"}, "axes='xyz' must be one of"),
        ({"scaling": "maximum"}, "must be range, max"),
        ({"scaling": [1, 0]}, "the lower one first"),
        ({"scaling": [0, np.inf]}, "two finite values"),
    ],
)
def test_a_way_of_reading_that_is_none_is_refused(how, message, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        io.read_images(array(tmp_path / "a.npy", RAMP), **how)


def test_colors_in_a_volume(tmp_path):
    assert [image.shape for image in io.read_images(records(tmp_path / "a.nii"))] == [(5, 4, 3)] * 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((RAMP.astype(np.uint16) * 16), "fill 6.2% of"),
        ((GRAY * 0.05).astype(np.float32), "fill 5.0% of"),
    ],
)
def test_a_picture_that_hardly_uses_its_range_is_told(values, message, tmp_path):
    with pytest.warns(DataWarning, match=rf"a\.tif.*{message}"):
        io.read_images(tiff(tmp_path / "a.tif", values))


def test_transparent_pixels_are_told(tmp_path):
    with pytest.warns(DataWarning, match="opacity is left out"):
        (found,) = io.read_images(picture(tmp_path / "a.png", Image.fromarray(np.dstack([COLORS, RAMP]), mode="RGBA")))
    assert found == pytest.approx(COLOR, abs=1e-6)


@pytest.mark.parametrize(("values", "key"), [(RAMP, 100), (COLORS, (0, 255, 0))])
def test_a_color_that_stands_for_transparency_is_told(values, key, tmp_path):
    values = values.copy()
    values[3, 4] = key
    with pytest.warns(DataWarning, match="opacity is left out"):
        (found,) = io.read_images(picture(tmp_path / "a.png", Image.fromarray(values), transparency=key))
    assert found == pytest.approx(values / 255, abs=1e-6)


def test_a_photograph_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    (found,) = io.read_images(tmp_path / "a.png")
    assert found == pytest.approx(np.rot90(GRAY, -1), abs=1e-6)


def test_empty_slices_are_dropped_where_it_is_wanted(tmp_path):
    volume = np.concatenate([np.zeros_like(VOLUME[:1]), VOLUME, np.full_like(VOLUME[:1], 0.01)])
    path = array(tmp_path / "a.npy", volume)
    assert len(io.read_images(path)) == 7
    assert np.stack(io.read_images(path, drop_empty=True)) == pytest.approx(VOLUME)
    assert len(io.read_images(array(tmp_path / "b.npy", np.zeros((8, 8))), drop_empty=True)) == 1


def test_what_a_folder_holds(tmp_path):
    """Links are followed and may be circular, hidden folders are not looked at, DICOM has any name."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside / "sub", inside / ".hidden", outside):
        folder.mkdir(parents=True)
    for path in (inside / "a.png", inside / ".b.png", inside / ".hidden" / "c.png", outside / "d.png"):
        Image.fromarray(RAMP).save(path)
    dicom(inside / "sub" / "1.2.3", RAMP, bits=8)
    (inside / "notes.txt").write_text("not looked at")
    (inside / "linked").symlink_to(outside)
    (inside / "sub" / "up").symlink_to(inside)
    found = [path.relative_to(inside).as_posix() for path in io.list_sources(inside)]
    assert found == ["a.png", "linked/d.png", "sub/1.2.3"]
    (inside / "x.raw").write_bytes(b"what is this")
    with pytest.warns(DataWarning, match=r"1 files of unknown kinds are left out, such as x\.raw"):
        io.list_sources(inside)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.png", "b/a.png"], ["a", "b__a"]),
        (["a.jpg", "a.png"], ["a.jpg", "a.png"]),
        (["a.png", "A.png"], ["a.png", "A.png~2"]),
        (["b/c.png", "b__c.png"], ["b__c.png", "b__c.png~2"]),
        (["v.nii.gz", "1.2.840"], ["v", "1.2.840"]),
    ],
)
def test_names_are_unique(files, names, tmp_path):
    assert io.file_names([tmp_path / file for file in files], tmp_path) == names


def test_every_test_file_of_pydicom_and_nibabel():
    """Each is a picture that agrees with what the library itself gives, or is refused in one line."""
    pictures, messages = 0, []
    folders = [Path(pydicom.__file__).parent / "data", Path(nibabel.__file__).parent / "tests" / "data"]
    for path in sorted(p for folder in folders for p in folder.rglob("*") if p.is_file()):
        try:
            images = io.read_images(path, scaling="percentile")
        except UserError as error:
            messages.append((path, str(error)))
            continue
        pictures += 1
        right = np.squeeze(own_conversion(path))
        low, high = np.percentile(right, (0.1, 99.9))
        # pytest.approx takes seconds for a picture.
        expected = ((right - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(np.squeeze(np.stack(images)), expected, atol=1e-4, err_msg=str(path))
    print(f"of pydicom's and nibabel's test files, {pictures} are pictures and {len(messages)} refused")
    assert pictures >= 90
    for path, message in messages:
        assert str(path) in message
        assert "\n" not in message


def own_conversion(path: Path) -> np.ndarray:
    """What the library's own functions make of a file, slices first, rows from the top."""
    if path.name.endswith((".nii", ".nii.gz")):
        volume = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
        volume = volume.reshape(*volume.shape[:2], -1)
        return np.moveaxis(volume[:, ::-1], (2, 1, 0), (0, 1, 2))
    data = pydicom.dcmread(path)
    pixels = pydicom.pixels.pixel_array(data)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        return pydicom.pixels.apply_color_lut(pixels, data)[..., :3]
    values = pydicom.pixels.apply_modality_lut(pixels, data) if data.SamplesPerPixel == 1 else pixels
    return -values.astype(float) if data.PhotometricInterpretation == "MONOCHROME1" else values
