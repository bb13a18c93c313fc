"""Reading what `prepare` wrote."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from elder import files
from elder.images import to_tensor


def images(folder: Path, part: str) -> tuple[list[str], list[Tensor]]:
    """Names and pictures (1, c, h, w) of a split, sorted by name."""
    paths = files.list_images(folder / part)
    return [path.stem for path in paths], [to_tensor(files.read_image(path)) for path in paths]
