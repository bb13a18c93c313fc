"""Patches of the training images that `prepare` wrote."""

from __future__ import annotations

from pathlib import Path

from elder import io
from elder.training.patches import Patches


def read_patches(folder: Path, size: int) -> Patches:
    """Square patches of `size` pixels of the training images, which stay on disk."""
    paths = io.list_sources(folder / "train")
    return Patches([io.stored_image(path) for path in paths], size, [path.stem for path in paths])
