"""Reading and writing arrays, pictures and text; whatever is written is written whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from elder.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place when the block ends well, and vanishes when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o644)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as JSON with sorted layout and a newline at the end."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV; the columns are the keys of all rows, in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises `UserError` when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of a file by its name; formats that hold one give it the name `y`.

    .npy .npz .mat (both formats) .h5 .png .jpg .tif. Raises `UserError` for a missing, corrupt or unknown file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    readers: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
        ".npy": lambda p: {"y": np.load(p, allow_pickle=False)},
        ".npz": _read_npz,
        ".mat": _read_mat,
        ".h5": _read_hdf5,
        ".hdf5": _read_hdf5,
        **{suffix: lambda p: {"y": _read_picture(p)} for suffix in PICTURES},
    }
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: can't read {path.suffix or 'a file without suffix'}; known are {' '.join(readers)}")
    try:
        return readers[path.suffix.lower()](path)
    except UserError:
        raise
    except Exception as error:  # each format's library has errors of its own for a broken file
        raise UserError(f"{path}: corrupt or not a {path.suffix} file ({str(error).splitlines()[0]})") from None


def read_array(path: str | Path, key: str = "y") -> np.ndarray:
    """The array `key` of a file, or its only one; NAME:INDEX takes one entry of a cell or of the first axis."""
    arrays = read_arrays(path)
    if key in arrays:
        return arrays[key]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise UserError(f"{path}: holds {', '.join(sorted(arrays))} and not {key!r}")


def read_stack(path: str | Path) -> list[np.ndarray]:
    """The two-dimensional arrays of a file: its one array, the cells of a cell array, or the first axis of a stack."""
    arrays = read_arrays(path)
    cells = [array for name, array in sorted(arrays.items()) if not name.startswith("#")]
    if len(cells) != 1:
        raise UserError(f"{path}: must hold one array; it holds {', '.join(sorted(arrays)) or 'none'}")
    array = cells[0]
    if array.dtype == object:
        return [np.asarray(cell) for cell in array.flatten()]
    return [array] if array.ndim == 2 else list(array)


def read_image(path: str | Path) -> np.ndarray:
    """A picture as float32 (h, w) or (h, w, 3) in [0, 1]: integers are divided by the range of their type.

    Raises `UserError` for a corrupt file, NaN, or floating-point values outside [0, 1].
    """
    raw = read_array(path)
    if raw.ndim == 3 and raw.shape[-1] == 4:
        raw = raw[..., :3]
    if raw.ndim == 3 and raw.shape[-1] == 1:
        raw = raw[..., 0]
    if raw.ndim == 3 and raw.shape[-1] == 2:
        raw = raw[..., 0]
    if raw.ndim not in (2, 3) or (raw.ndim == 3 and raw.shape[-1] != 3):
        raise UserError(f"{path}: a picture must be (h, w) or (h, w, 3); got {raw.shape}")
    if np.issubdtype(raw.dtype, np.integer):
        return (raw / np.iinfo(raw.dtype).max).astype(np.float32)
    if raw.dtype == bool:
        return raw.astype(np.float32)
    if not np.isfinite(raw).all():
        raise UserError(f"{path}: holds NaN or infinite values: repair or leave out the image")
    if raw.min() < 0 or raw.max() > 1:
        raise UserError(f"{path}: values from {raw.min():g} to {raw.max():g}: floating-point images must lie in [0, 1]")
    return raw.astype(np.float32)


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write a picture (h, w) or (h, w, 3): .tif and .npy keep float32, .png is clipped to [0, 1] and has 8 bits."""
    import skimage.io
    import tifffile

    suffix = Path(path).suffix.lower()
    with replacing(path) as temporary:
        if suffix == ".npy":
            np.save(temporary, image.astype(np.float32), allow_pickle=False)
        elif suffix in (".tif", ".tiff"):
            tifffile.imwrite(temporary, image.astype(np.float32), compression="zlib", metadata=None)
        elif suffix in (".png", ".jpg", ".jpeg"):
            skimage.io.imsave(temporary, np.round(image.clip(0, 1) * 255).astype(np.uint8), check_contrast=False)
        else:
            raise UserError(f"{path}: can't write {suffix or 'a file without suffix'}; known are .png .tif .npy")


def list_images(folder: str | Path) -> list[Path]:
    """The pictures below a folder, sorted. Raises `UserError` when there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and not p.name.startswith("."))
    if not found:
        raise UserError(f"{folder}: holds no picture; known are {' '.join(PICTURES)}")
    return found


def _read_picture(path: Path) -> np.ndarray:
    import skimage.io

    return np.asarray(skimage.io.imread(path))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    import scipy.io

    try:
        content = scipy.io.loadmat(path)
    except NotImplementedError:  # MATLAB 7.3 files are HDF5, transposed
        return {name: array.T for name, array in _read_hdf5(path).items()}
    return {name: value for name, value in content.items() if isinstance(value, np.ndarray)}


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: reading HDF5 needs h5py; install elder[formats]") from None
    arrays: dict[str, np.ndarray] = {}

    def collect(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or name.startswith("#"):
            return
        array = np.asarray(item)
        if array.dtype == object:  # a MATLAB cell array holds references
            cells = np.empty(array.size, dtype=object)
            for index, reference in enumerate(array.flatten()):
                cells[index] = np.asarray(item.file[reference]).T
            array = cells
        arrays[name] = array

    with h5py.File(path, "r") as file:
        file.visititems(collect)
    return arrays
