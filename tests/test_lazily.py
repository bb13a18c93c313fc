"""Pictures that stay on disk give what pictures in memory give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from elder import UserError, io
from elder.training.patches import Patches


@pytest.mark.parametrize("shape", [(40, 48), (33, 21, 3)], ids=["gray", "color"])
@pytest.mark.parametrize("kind", ["plain", "compressed", "png", "big-endian", "tiled", "rotated"])
def test_a_part_of_a_stored_picture(kind, shape, tmp_path):
    values = np.random.default_rng(1).random(shape).astype(np.float32)
    path = tmp_path / ("picture.png" if kind == "png" else "picture.tif")
    photometric = "rgb" if len(shape) == 3 else "minisblack"
    if kind == "png":
        Image.fromarray((values * 255).astype(np.uint8)).save(path)
    elif kind in ("plain", "compressed"):
        io.write_image(path, values, plain=kind == "plain")
    elif kind == "big-endian":
        tifffile.imwrite(path, values, byteorder=">", photometric=photometric)
    elif kind == "tiled":
        tifffile.imwrite(path, values, tile=(16, 16), photometric=photometric)
    else:
        tifffile.imwrite(path, values, photometric=photometric, extratags=[(274, "H", 1, 6, True)])
    whole, stored = io.to_tensor(io.read_image(path)), io.stored_image(path)
    assert stored.shape == whole.shape
    assert (stored.offset is not None) == (kind in ("plain", "big-endian"))
    h, w = whole.shape[-2:]
    for rows, columns in ((slice(3, 17), slice(5, 20)), (slice(0, h), slice(0, w)), (slice(h - 1, h), slice(w - 1, w))):
        part = stored[..., rows, columns]
        assert part.dtype == torch.float32
        assert torch.equal(part, whole[..., rows, columns])


def test_patches_from_disk_are_those_from_memory(photographs, tmp_path):
    paths = []
    for index, path in enumerate(io.list_sources(photographs)):
        paths.append(tmp_path / f"{path.stem}.tif")
        io.write_image(paths[-1], io.read_image(path)[index:, 2 * index :], plain=index % 2 == 0)
    names = [path.stem for path in paths]
    stored = Patches([io.stored_image(path) for path in paths], 24, names)
    held = Patches([io.to_tensor(io.read_image(path)) for path in paths], 24, names)
    draws = [torch.Generator().manual_seed(5) for _ in range(2)]
    for _ in range(5):
        assert torch.equal(stored.draw(7, draws[0]), held.draw(7, draws[1]))
    assert torch.equal(draws[0].get_state(), draws[1].get_state())


def test_a_corrupt_stored_picture_is_named(tmp_path):
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    with pytest.raises(UserError, match=r"broken\.tif: corrupt"):
        io.stored_image(tmp_path / "broken.tif")


def test_a_lazy_sequence_keeps_the_last_ones():
    made: list[str] = []

    def make(key: str) -> Path:
        made.append(key)
        return Path(key)

    lazy = io.Lazy("abcde", make, kept=2)
    assert (len(lazy), made) == (5, [])
    assert lazy[1] is lazy[-4]
    assert [path.name for path in lazy] == list("abcde")
    assert made == list("bacde")  # b was still there
    assert lazy[3] is lazy[3]
    assert made == list("bacde")
    assert [path.name for path in lazy[1:3]] == ["b", "c"]
    with pytest.raises(IndexError):
        lazy[5]
