"""Reading the images that `prepare` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from elder import io


def clean_images(folder: Path, part: str) -> tuple[list[str], Sequence[Tensor]]:
    """Names and pictures (1, c, h, w) of a split, sorted by name. A picture is read when it is asked for."""
    paths = io.list_sources(folder / part)
    return [path.stem for path in paths], io.Lazy(paths, lambda path: io.to_tensor(io.read_image(path)))
