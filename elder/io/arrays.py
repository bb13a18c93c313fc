"""Reading arrays from NumPy, MATLAB, HDF5 and picture files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from elder.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


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
