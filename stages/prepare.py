"""Images from a source into train, validation and test, each image in one of them only."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import shutil
import warnings
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import skimage
from PIL import Image
from skimage.color import rgb2gray
from skimage.transform import resize
from tqdm import tqdm

from elder import io
from elder.errors import DataWarning, UserError
from pipeline import params, splits
from pipeline.params import Preparation
from pipeline.splits import SPLITS
from stages import command

# Bits of 64 in which the perceptual hashes of near-duplicates differ at most; other photographs differ in some 30.
NEAR = 4
# One photograph in one split; the right half of the motorcycle's stereo pair is left out for that reason. So are those
# that teach nothing of photographs: a page of text, stars, and a cell without contrast.
BUILTIN = {
    "train": ("motorcycle_left.png", "ihc.png", "retina.jpg", "moon.png", "brick.png", "grass.png"),
    "validation": ("coins.png", "gravel.png", "rocket.jpg"),
    "test": ("camera.png", "chelsea.png", "astronaut.png", "coffee.png"),
}  # fmt: skip


def main(arguments: argparse.Namespace) -> None:
    """Split the source's images, make them gray or colored and of one size, and write float32 TIFF with a manifest."""
    chosen = params.read().prepare
    parts = builtin() if chosen.source == "builtin" else split(Path(chosen.folder), chosen)
    temporary = arguments.out.with_name(f".{arguments.out.name}-partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        rows = [row for name in SPLITS for row in write(parts[name], name, temporary, chosen)]
        refuse_duplicates(rows)
    except UserError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    listed = [{key: value for key, value in row.items() if key != "perceptual"} for row in rows]
    io.write_json(temporary / "manifest.json", {"source": chosen.source, "images": listed})
    shutil.rmtree(arguments.out, ignore_errors=True)
    temporary.rename(arguments.out)
    counts = {name: sum(row["split"] == name for row in rows) for name in SPLITS}
    print(", ".join(f"{counts[name]} {name}" for name in SPLITS), f"images in {arguments.out}")


def builtin() -> dict[str, dict[Path, str]]:
    """The photographs that ship inside scikit-image; for each split, files and their names."""
    folder = Path(skimage.__file__).parent / "data"
    return {part: {folder / file: Path(file).stem for file in files} for part, files in BUILTIN.items()}


def split(folder: Path, chosen: Preparation) -> dict[str, dict[Path, str]]:
    """The files of a folder in each split, and a name for each that is unique in its split."""
    paths = io.list_sources(folder)
    names = [path.relative_to(folder).as_posix() for path in paths]
    # A patient may have a folder in each split: below it, the group has one name.
    below = [name.partition("/")[2] or name for name in names] if chosen.split == "folders" else names
    groups = splits.groups_of(below if chosen.group else names, chosen.group)
    if chosen.split == "random":
        shares = {"validation": chosen.validation_share, "test": chosen.test_share}
        where, hint = splits.at_random(names, groups, shares, chosen.seed), "prepare.split=random"
    elif chosen.split == "folders":
        where = splits.by_folders(names)
        hint = f"prepare.split=folders wants the images in {', '.join(SPLITS)} below {folder}"
    else:
        where = splits.by_list(Path(chosen.split))
        absent = sorted(set(where) - set(names))
        if absent:
            text = f"{chosen.split}: lists {len(absent)} files that are not below {folder}, such as {absent[0]}"
            warnings.warn(text, DataWarning, stacklevel=2)
        hint = f"prepare.split={chosen.split} must give each file one of {', '.join(SPLITS)}"
    for name in names:
        if where.get(name) not in SPLITS:
            raise UserError(f"{hint}; {name} has {where.get(name, 'none')}")
    splits.refuse_torn(where, names, groups)
    parts = {}
    for part in SPLITS:
        members = [path for path, name in zip(paths, names, strict=True) if where[name] == part]
        if not members:
            raise UserError(f"{hint}; {part} is empty")
        root = folder / part if chosen.split == "folders" else folder
        parts[part] = dict(zip(members, io.file_names(members, root), strict=True))
    return parts


def write(files: dict[Path, str], part: str, out: Path, chosen: Preparation) -> list[dict[str, Any]]:
    """The images of one split: training copies of each at every scale, or their central squares."""
    scales = chosen.train_scales if part == "train" else [1.0]
    scaling, slices, axes = chosen.scaling, chosen.slices, chosen.axes
    rows, given = [], io.Names()
    for path, stem in tqdm(files.items(), desc=f"prepare {part}", disable=len(files) < 50):
        images = io.read_images(path, scaling=scaling, slices=slices, axes=axes, drop_empty=chosen.drop_empty)
        for index, image in enumerate(images):
            image = io.with_channels(image, 3 if chosen.color else 1)
            digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
            look = perceptual(image)
            for scale in scales:
                picture = shrink(image, round(chosen.shorter_side * scale))
                if part != "train":
                    picture = cropped(central_square(picture, chosen.shorter_side), chosen.multiple)
                numbered = f"{stem}-{index}" if len(images) > 1 else stem
                name = given.claim(numbered if len(scales) == 1 else f"{numbered}@{scale:g}")
                io.write_image(out / part / f"{name}.tif", picture)
                shape = {"height": picture.shape[0], "width": picture.shape[1]}
                rows.append({"name": name, "split": part, "sha256": digest, "perceptual": look, **shape})
    return rows


def perceptual(image: np.ndarray) -> imagehash.ImageHash | None:
    """A hash that survives scaling, compression and small changes of brightness (pHash, 64 bits).

    None for an image that shows nothing: all of them look the same.
    """
    if image.max() == image.min():
        return None
    gray = image if image.ndim == 2 else rgb2gray(image)
    return imagehash.phash(Image.fromarray(np.round(gray.clip(0, 1) * 255).astype(np.uint8)))


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """The image with its shorter side shrunk to `side`, anti-aliased; as it is where it is no larger, or side is 0."""
    factor = side / min(image.shape[:2])
    if not 0 < factor < 1:
        return image.astype(np.float32)
    shape = (*(max(side, round(n * factor)) for n in image.shape[:2]), *image.shape[2:])
    return np.asarray(resize(image, shape, anti_aliasing=True), dtype=np.float32).clip(0, 1)


def central_square(image: np.ndarray, size: int) -> np.ndarray:
    """The middle `size` x `size` pixels, or the whole image where it is smaller or size is 0."""
    top, left = (max(0, (n - size) // 2) if size else 0 for n in image.shape[:2])
    return image[top : top + size, left : left + size] if size else image


def cropped(image: np.ndarray, multiple: int) -> np.ndarray:
    """The middle of the image whose sides are the largest multiples of `multiple`."""
    h, w = (n - n % multiple for n in image.shape[:2])
    if min(h, w) == 0:
        raise UserError(f"prepare.multiple={multiple}: an image of {image.shape[0]}x{image.shape[1]} is smaller")
    top, left = (image.shape[0] - h) // 2, (image.shape[1] - w) // 2
    return image[top : top + h, left : left + w]


def refuse_duplicates(rows: list[dict[str, Any]]) -> None:
    """Raise `UserError` when one picture, or two that look the same, are in two splits."""
    for a, b in itertools.combinations(rows, 2):
        if a["split"] == b["split"]:
            continue
        if a["perceptual"] is None or b["perceptual"] is None:
            continue
        if a["sha256"] == b["sha256"]:
            raise UserError(f"{a['name']} ({a['split']}) and {b['name']} ({b['split']}) are one picture: remove one")
        if a["perceptual"] - b["perceptual"] <= NEAR:
            raise UserError(
                f"{a['name']} ({a['split']}) and {b['name']} ({b['split']}) look the same: remove one, put "
                "both into one split by a list in prepare.split, or into one group by prepare.group"
            )


if __name__ == "__main__":
    command.run(main, writes=("out",))
