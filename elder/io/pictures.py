"""Single pictures: reading, writing, and conversion to tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elder.errors import UserError
from elder.io.arrays import PICTURES, read_array
from elder.io.atomic import replacing


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


def to_tensor(image: np.ndarray) -> Tensor:
    """(h, w) or (h, w, c) as (1, c, h, w) float32."""
    array = image[..., None] if image.ndim == 2 else image
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)[None], dtype=np.float32))


def to_array(x: Tensor) -> np.ndarray:
    """One picture (c, h, w) as (h, w), or (h, w, 3) for color."""
    array = x.detach().cpu().float().numpy()
    return array[0] if len(array) == 1 else array.transpose(1, 2, 0)
