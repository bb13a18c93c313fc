"""Clean images from files of every kind that the field uses: pictures, arrays, and volumes slice by slice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from elder.errors import UserError
from elder.io.arrays import PICTURES, read_arrays
from elder.io.pictures import read_image

# How each scaling brings values to [0, 1].
SCALINGS = ("range", "max")
# In a file of several arrays, the one that holds the images; the first three are fastMRI's.
KEYS = ("reconstruction_rss", "reconstruction_esc", "kspace", "image", "images", "y")


def list_sources(folder: str | Path) -> list[Path]:
    """The files below a folder that `read_images` knows, sorted. Raises `UserError` when there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = sorted(p for p in folder.rglob("*") if p.is_file() and suffix(p) and not p.name.startswith("."))
    if not found:
        raise UserError(f"{folder}: holds no image; known are {' '.join(READERS)}")
    return found


def suffix(path: Path) -> str | None:
    """The part of a name that tells the kind of file, `.nii.gz` as one, or None for a kind that is not known."""
    name = path.name.lower()
    return next((known for known in READERS if name.endswith(known)), None)


def stem(path: Path) -> str:
    """The name without the part that tells the kind."""
    return path.name[: -len(suffix(path) or "")]


def read_images(path: str | Path, *, scaling: str = "range", slices: int = 0) -> list[np.ndarray]:
    """The images of a file, float32 (h, w) or (h, w, 3) in [0, 1].

    A volume gives its slices along the first axis of an array or HDF5 file, the last of NIfTI; slices: how many, from
    the middle, 0 for all. Complex values give their magnitude; fastMRI's k-space the root sum of squares of its coils.
    scaling: `range` divides integers by the range of their type and wants floats in [0, 1]; `max` divides by the
    largest value of the file. Raises `UserError` for a corrupt or unknown file, NaN, or values out of range.
    """
    path = Path(path)
    kind = suffix(path)
    if kind is None:
        raise UserError(f"{path}: can't read {path.suffix or 'a file without suffix'}; known are {' '.join(READERS)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        values = READERS[kind](path)
    except (UserError, ImportError):
        raise
    except Exception as error:  # each format's library has errors of its own for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: corrupt or not a {kind} file ({reason})") from None
    scaled = scale(path, values, scaling)
    images = [scaled] if scaled.ndim == 2 or (scaled.ndim == 3 and scaled.shape[-1] == 3) else list(scaled)
    if not images or images[0].ndim not in (2, 3) or min(images[0].shape[:2]) < 2:
        raise UserError(f"{path}: must hold images (h, w) or (h, w, 3), or a stack of them; got {values.shape}")
    first = (len(images) - slices) // 2 if 0 < slices < len(images) else 0
    return images[first : first + slices] if slices else images


def scale(path: Path, values: np.ndarray, scaling: str) -> np.ndarray:
    """Values in [0, 1], float32."""
    if np.iscomplexobj(values):
        values = np.abs(values)
    if not np.isfinite(values).all():
        raise UserError(f"{path}: holds NaN or infinite values: repair or leave out the image")
    if scaling == "max":
        least, largest = float(values.min()), float(values.max())
        if least < 0 or largest <= 0:
            raise UserError(f"{path}: values from {least:g} to {largest:g}: can't be divided by their largest")
        return (values / largest).astype(np.float32)
    if values.dtype == bool:
        return values.astype(np.float32)
    if np.issubdtype(values.dtype, np.integer):
        return (values / np.iinfo(values.dtype).max).astype(np.float32)
    if values.min() < 0 or values.max() > 1:
        raise UserError(
            f"{path}: values from {values.min():g} to {values.max():g}: floating-point images must lie in [0, 1], or "
            "be read with scaling max"
        )
    return values.astype(np.float32)


def _picture(path: Path) -> np.ndarray:
    return read_image(path)


def _arrays(path: Path) -> np.ndarray:
    arrays = read_arrays(path)
    key = next((key for key in KEYS if key in arrays), None)
    if key is None and len(arrays) > 1:
        raise UserError(f"{path}: holds {', '.join(sorted(arrays))}; name the images {' or '.join(KEYS)}")
    values = arrays[key] if key else next(iter(arrays.values()))
    if key == "kspace":  # (slices, coils, h, w), or (slices, h, w) of one coil; centered
        axes = (-2, -1)
        coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(values, axes), norm="ortho"), axes)
        values = np.sqrt((np.abs(coils) ** 2).sum(1)) if coils.ndim == 4 else np.abs(coils)
    return values


def _nifti(path: Path) -> np.ndarray:
    nibabel: Any = _optional("nibabel", path)
    values = np.asanyarray(nibabel.load(path).dataobj)
    if values.ndim < 2:
        raise UserError(f"{path}: must hold a volume (x, y, z); got {values.shape}")
    values = values.reshape(*values.shape[:2], -1)
    # From left-right and back-front to rows from the top, slice by slice.
    return np.rot90(values).transpose(2, 0, 1)


def _dicom(path: Path) -> np.ndarray:
    pydicom: Any = _optional("pydicom", path)
    values = np.asarray(pydicom.dcmread(path).pixel_array)
    return values


def _optional(module: str, path: Path) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{path}: reading it needs {module}; install elder[formats]") from None


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    **dict.fromkeys(PICTURES, _picture),
    **dict.fromkeys((".npy", ".npz", ".mat", ".h5", ".hdf5"), _arrays),
    **dict.fromkeys((".nii.gz", ".nii"), _nifti),
    ".dcm": _dicom,
}
