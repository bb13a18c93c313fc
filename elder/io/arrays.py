"""Reading arrays from NumPy, MATLAB and HDF5 files, and the numbers of a picture as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elder.errors import UserError
from elder.io.pictures import PICTURES, read_unchecked

HDF5 = (".h5", ".hdf5")


def read_arrays(path: str | Path, keys: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Every array of a file by its name; formats that hold one give it the name `y`.

    .npy .npz .mat (both formats) .h5 .hdf5 and pictures. What holds no numbers, such as text and structures, is left
    out. keys: names of which the first one that a file has is wanted. Of HDF5 no other array is read then, but `mask`:
    the k-space of a file can take a hundred times the memory of its pictures. Raises `UserError` for a missing, corrupt
    or unknown file, or one without an array of numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix.lower() not in ARRAYS:
        raise UserError(f"{path}: can't read {path.suffix or 'a file without suffix'}; known are {' '.join(ARRAYS)}")
    with reading(path, path.suffix.lower()):
        arrays = _read_hdf5(path, keys) if path.suffix.lower() in HDF5 else ARRAYS[path.suffix.lower()](path)
    numeric = {name: array for name, array in arrays.items() if array.dtype.kind in "biufcO"}
    if not numeric:
        raise UserError(f"{path}: holds no array of numbers")
    return numeric


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn what a format's library raises for a broken file into one `UserError` that names the file.

    Each library has its own errors for it, and some raise whatever their parsers run into. A file that is too large
    for the memory, or that may not be read, is not broken.
    """
    try:
        yield
    except (UserError, Warning, MemoryError, PermissionError):
        raise
    except Exception as error:
        empty = path.is_file() and path.stat().st_size == 0
        reason = "it is empty" if empty else (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: corrupt or not a {kind} file ({reason})") from None


def read_array(path: str | Path, key: str = "y") -> np.ndarray:
    """The array `key` of a file, or its only one.

    Raises `UserError` if it holds several and none of that name, and what `read_arrays` raises.
    """
    arrays = read_arrays(path)
    if key in arrays:
        return arrays[key]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise UserError(f"{path}: holds {', '.join(sorted(arrays))} and not {key!r}")


def read_stack(path: str | Path) -> list[np.ndarray]:
    """The two-dimensional arrays of a file: its one array, the cells of a cell array, or the first axis of a stack.

    Raises `UserError` for several arrays, a stack along its last axis, a picture with colors, and what `read_arrays`
    raises.
    """
    arrays = read_arrays(path)
    if len(arrays) != 1:
        raise UserError(f"{path}: must hold one array; it holds {', '.join(sorted(arrays))}")
    (array,) = arrays.values()
    if array.dtype == object:
        return [np.asarray(cell) for cell in array.flatten()]
    if Path(path).suffix.lower() in PICTURES:
        array = _gray(array, str(path))
    if array.ndim == 3 and array.shape[0] == array.shape[1] != array.shape[2]:
        raise UserError(f"{path}: a stack must have its pictures along the first axis; it is {array.shape}")
    return [array] if array.ndim == 2 else list(array)


def binary(mask: np.ndarray, source: str) -> Tensor:
    """A 0/1 mask as float32, (h, w) or (b, 1, h, w), from an array of two values, zero and one other.

    A mask of a single value other than zero is full. Raises `UserError` for more values: compressed as JPEG, a mask is
    none. `source` names it in messages.
    """
    mask = _gray(mask, source)
    if mask.ndim not in (2, 4) or mask.dtype.kind not in "biuf":
        raise UserError(f"{source} must be (h, w) and hold numbers; got {mask.dtype} {mask.shape}")
    if not np.isfinite(mask).all():
        raise UserError(f"{source} must hold two values, zero and one other; it holds NaN or infinite ones")
    values = np.unique(mask)
    if not (len(values) == 2 and values[0] == 0) and not (len(values) == 1 and values[0] != 0):
        raise UserError(
            f"{source} must hold two values, zero and one other; it holds {len(values)}, {values[0]:g} to "
            f"{values[-1]:g}: save masks without loss, as .png or .npy"
        )
    return torch.from_numpy((mask != 0).astype(np.float32))


def check_mask_size(mask: Tensor, source: str, size: tuple[int, int]) -> None:
    """Raise `UserError` if a mask (h, w) from a file is not of the size of the pictures. `source` names it."""
    if mask.shape[-2:] != size:
        (k, m), (h, w) = mask.shape[-2:], size
        raise UserError(f"mask={source} is {k}x{m} but the image is {h}x{w}: they must be of one size")


def _gray(array: np.ndarray, source: str) -> np.ndarray:
    """(h, w) from the color file of a gray picture, (h, w, 3), or with opacity (h, w, 4); others as they are.

    Raises `UserError` if the colors differ: no one of them stands for the others.
    """
    if array.ndim != 3 or array.shape[-1] not in (3, 4):
        return array
    if bool((array[..., :3] != array[..., :1]).any()):
        raise UserError(f"{source} must be gray; it has colors")
    return array[..., 0]


def _read_npy(path: Path) -> dict[str, np.ndarray]:
    return {"y": np.load(path, allow_pickle=False)}


def _read_numbers(path: Path) -> dict[str, np.ndarray]:
    values = read_unchecked(path).values
    return {"y": values[0] if len(values) == 1 else values}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    import scipy.io

    try:
        content = scipy.io.loadmat(path)
    except NotImplementedError:  # MATLAB 7.3 files are HDF5, transposed
        return {name: array.T for name, array in _read_hdf5(path).items()}
    found = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
    return {name: value for name, value in found.items() if value.dtype != object or _is_cells(value)}


def _is_cells(array: np.ndarray) -> bool:
    """Whether every cell of a cell array holds numbers."""
    return all(isinstance(cell, np.ndarray) and cell.dtype.kind in "biufc" for cell in array.flatten())


def _read_hdf5(path: Path, keys: Sequence[str] = ()) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: reading HDF5 needs h5py; install elder[formats]") from None
    found: dict[str, Any] = {}

    def collect(name: str, item: Any) -> None:
        # A shape of None is HDF5's nothing. References are the cells of MATLAB, pairs its complex numbers.
        if not isinstance(item, h5py.Dataset) or name.startswith("#") or item.shape is None:
            return
        references = h5py.check_ref_dtype(item.dtype) is not None
        if references or item.dtype.kind in "biufc" or item.dtype.names == ("real", "imag"):
            found[name] = item

    def values(item: Any) -> np.ndarray:
        if h5py.check_ref_dtype(item.dtype) is not None:
            cells = np.empty(item.size or 0, dtype=object)
            for index, reference in enumerate(np.asarray(item).flatten()):
                cells[index] = np.asarray(item.file[reference]).T
            return cells
        array: Any = np.asarray(item)
        return array["real"] + 1j * array["imag"] if item.dtype.names else array

    with h5py.File(path, "r") as file:
        file.visititems(collect)
        wanted = next(({key, "mask"} for key in keys if key in found), found.keys())
        arrays = {name: values(item) for name, item in found.items() if name in wanted}
    return {name: array for name, array in arrays.items() if array.dtype != object or _is_cells(array)}


# What reads the arrays of a file, by its suffix.
ARRAYS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".mat": _read_mat,
    **dict.fromkeys(HDF5, _read_hdf5),
    **dict.fromkeys(PICTURES, _read_numbers),
}
