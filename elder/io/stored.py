"""Pictures that stay on disk: read in parts, or when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import EllipsisType
from typing import Generic, TypeVar, overload

import numpy as np
from torch import Tensor

from elder.io.arrays import reading
from elder.io.images import read_image
from elder.io.pictures import ORIENTATION, TIFF, to_tensor

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class StoredImage:
    """A picture (1, c, h, w) in a file, of which parts are read as they are asked for.

    Made by `stored_image`. It takes a part as a tensor does, by `image[..., rows, columns]`.
    """

    path: Path
    shape: tuple[int, int, int, int]
    offset: int | None  # in bytes, of the values in a file that holds them plainly; `None`: it is decoded as a whole
    dtype: str

    def __getitem__(self, part: tuple[EllipsisType, slice, slice]) -> Tensor:
        """The rows and columns, (1, c, k, l) float32. Of a plain file, the pages that hold them are read."""
        _, rows, columns = part
        if self.offset is None:
            return to_tensor(read_image(self.path)[rows, columns])
        _, c, h, w = self.shape
        values = np.memmap(self.path, self.dtype, "r", self.offset, (h, w, c))
        return to_tensor(np.array(values[rows, columns]))


def stored_image(path: Path) -> StoredImage:
    """The picture of a file with values in [0, 1], as `write_image` writes it with `plain`; or of any other file.

    Raises `UserError` for a file that is corrupt or holds no picture.
    """
    plain = None
    if path.suffix.lower() in TIFF:
        with reading(path, path.suffix):
            plain = _plain(path)
    if plain is not None:
        return plain
    _, c, h, w = to_tensor(read_image(path)).shape
    return StoredImage(path, (1, c, h, w), None, "f4")


def _plain(path: Path) -> StoredImage | None:
    """The picture of a TIFF file whose values lie in it one after another as float32, or `None` for other files."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        known = page.photometric in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)
        upright = page.tags.valueof(ORIENTATION, 1) == 1
        contiguous = page.is_contiguous and page.compression == tifffile.COMPRESSION.NONE
        if not (known and upright and contiguous and len(file.pages) == 1 and page.dtype == np.float32):
            return None
        h, w, c = (*page.shape, 1)[:3]
        if page.axes not in ("YX", "YXS") or c not in (1, 3):
            return None
        return StoredImage(path, (1, c, h, w), page.dataoffsets[0], f"{file.byteorder}f4")


class Lazy(Sequence[T], Generic[K, T]):
    """A sequence whose elements are made from `keys` as they are asked for. The last `kept` of them stay in memory."""

    def __init__(self, keys: Sequence[K], make: Callable[[K], T], kept: int = 32) -> None:
        self._keys, self._make, self._kept = keys, make, kept
        self._element = lru_cache(kept)(lambda index: make(keys[index]))

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Lazy[K, T]: ...
    def __getitem__(self, index: int | slice) -> T | Lazy[K, T]:
        """The element, or a part of the sequence."""
        if isinstance(index, slice):
            return Lazy(self._keys[index], self._make, self._kept)
        return self._element(range(len(self._keys))[index])
