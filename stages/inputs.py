"""Reading the images that `prepare` wrote."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from elder import io


def clean_images(folder: Path, part: str) -> tuple[list[str], list[Tensor]]:
    """Names and pictures (1, c, h, w) of a split, sorted by name."""
    paths = io.list_sources(folder / part)
    return [path.stem for path in paths], [io.to_tensor(io.read_image(path)) for path in paths]
