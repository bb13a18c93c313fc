"""Images from a source into train, validation and test, each image in one of them only."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import shutil
import warnings
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image
from skimage.color import rgb2gray
from skimage.transform import resize

from elder import io
from elder.errors import DataWarning, UserError
from pipeline.pictures import splits
from pipeline.pictures.duplicates import Picture, refuse_duplicates
from pipeline.pictures.splits import SPLITS
from pipeline.settings import params
from pipeline.settings.params import Preparation
from stages import command
from stages.parallel import in_parallel

# Photographs inside packages, as package/path. One photograph is in one split; the right half of the motorcycle's
# stereo pair is left out for that reason. So are those that teach nothing of photographs: a page of text, stars, and a
# cell without contrast.
BUILTIN = {
    "train": (
        "skimage/data/motorcycle_left.png",
        "skimage/data/ihc.png",
        "skimage/data/retina.jpg",
        "skimage/data/moon.png",
        "skimage/data/brick.png",
        "skimage/data/grass.png",
        "sklearn/datasets/images/china.jpg",
        "sklearn/datasets/images/flower.jpg",
    ),
    "validation": ("skimage/data/coins.png", "skimage/data/gravel.png", "skimage/data/rocket.jpg"),
    "test": (
        "skimage/data/camera.png",
        "skimage/data/chelsea.png",
        "skimage/data/astronaut.png",
        "skimage/data/coffee.png",
    ),
}


def main(arguments: argparse.Namespace) -> None:
    """Split the source's images, make them gray or colored and of one size, and write float32 TIFF with a manifest."""
    prepare(params.read().prepare, arguments.out)


def prepare(chosen: Preparation, out: Path) -> None:
    """Write the images and the manifest to `out`, whole or not at all.

    Every file is read, and compared with those of the other splits, before the first is written.
    """
    parts = builtin() if chosen.source == "builtin" else split(Path(chosen.folder), chosen)
    pictures = {part: seen(files, part, chosen) for part, files in parts.items()}
    refuse_duplicates([picture for files in pictures.values() for found in files for picture in found])
    kept = {**pictures, "validation": spread(pictures["validation"], chosen.validation_images)}
    temporary = out.with_name(f".{out.name}-partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        rows = [row for part in SPLITS for row in write(list(parts[part]), kept[part], temporary / part, chosen)]
    except UserError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    io.write_json(temporary / "manifest.json", {"source": chosen.source, "images": rows})
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
    counts = {name: sum(row["split"] == name for row in rows) for name in SPLITS}
    print(", ".join(f"{counts[name]} {name}" for name in SPLITS), f"images in {out}")


def spread(pictures: Sequence[list[Picture]], most: int) -> list[list[Picture | None]]:
    """At most `most` pictures, evenly spread over all; None for those that are left out. 0 keeps all of them."""
    total = sum(len(found) for found in pictures)
    if not 0 < most < total:
        return [list(found) for found in pictures]
    print(f"validation: {most} of {total} images, by prepare.validation_images")
    numbers, kept = count(), {k * total // most for k in range(most)}
    return [[picture if next(numbers) in kept else None for picture in found] for found in pictures]


def builtin() -> dict[str, dict[Path, str]]:
    """The photographs inside scikit-image and scikit-learn; for each split, files and their names.

    Raises `UserError` if one of the packages is not installed.
    """
    return {part: {_in_package(file): Path(file).stem for file in files} for part, files in BUILTIN.items()}


def _in_package(file: str) -> Path:
    """The path of a file inside an installed package, which is not imported."""
    package, _, rest = file.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(
            f"prepare.source: builtin takes a photograph of the package {package}, which is not installed: "
            "pip install -c constraints.txt -e '.[pipeline]'"
        )
    return Path(spec.origin).parent / rest


def split(folder: Path, chosen: Preparation) -> dict[str, dict[Path, str]]:
    """The files of a folder in each split, and a name for each that is unique in its split.

    Raises `UserError` for a folder without images, and for splits that do not fit its files.
    """
    paths = io.list_sources(folder)
    io.check_axes(chosen.axes, paths)
    places = {place for path in paths for place in path.parents if place != folder and place.is_relative_to(folder)}
    if link := next((place for place in sorted(places) if place.is_symlink()), None):
        warnings.warn(
            f"{link} is a link to a folder: DVC does not see what changes there; run dvc repro --force prepare after a "
            "change, or name the folder itself in prepare.folder",
            DataWarning,
            stacklevel=2,
        )
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


def seen(files: dict[Path, str], part: str, chosen: Preparation) -> list[list[Picture]]:
    """The pictures of each file of a split, in order."""

    def look(path: Path) -> list[tuple[int | None, str, int | None]]:
        return [
            (number, hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest(), perceptual(x))
            for number, x in read(path, chosen)
        ]

    found, given = [], io.Names()
    for stem, looks in zip(files.values(), in_parallel(look, list(files), f"read {part}"), strict=True):
        found.append(
            [Picture(given.claim(io.numbered_name(stem, number)), part, sha256, mark) for number, sha256, mark in looks]
        )
    return found


def write(
    paths: Sequence[Path], pictures: Sequence[Sequence[Picture | None]], out: Path, chosen: Preparation
) -> list[dict[str, Any]]:
    """Write the pictures of one split below `out`, and return their rows of the manifest.

    Training gets a copy of each at every scale, validation and test get their central squares. A picture
    that is None is not written.
    """
    training = out.name == "train"
    scales = chosen.train_scales if training else [1.0]
    sides = [chosen.shorter_side, chosen.validation_side if out.name == "validation" else 0]
    side = min((side for side in sides if side), default=0)
    given = io.Names()
    # Names are given in the order of the files, whatever the order in which they are written.
    names = [
        [
            [given.claim(p.name if len(scales) == 1 else f"{p.name}@{scale:g}") for scale in scales] if p else []
            for p in found
        ]
        for found in pictures
    ]

    def write_file(job: tuple[Path, Sequence[Picture | None], list[list[str]]]) -> list[dict[str, Any]]:
        rows = []
        if not any(job[1]):
            return rows
        for (_, image), picture, copies in zip(read(job[0], chosen), *job[1:], strict=True):
            if picture is None:
                continue
            for scale, name in zip(scales, copies, strict=True):
                sized = shrink(image, round(chosen.shorter_side * scale))
                made = sized if training else cropped(central_square(sized, side), chosen.multiple)
                io.write_image(out / f"{name}.tif", made, plain=training)
                shape = {"height": made.shape[0], "width": made.shape[1]}
                rows.append({"name": name, "split": picture.split, "sha256": picture.sha256, **shape})
        return rows

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # of files: they were shown at the first reading
        jobs = list(zip(paths, pictures, names, strict=True))
        return [row for rows in in_parallel(write_file, jobs, f"prepare {out.name}") for row in rows]


def read(path: Path, chosen: Preparation) -> list[tuple[int | None, np.ndarray]]:
    """The images of a file with their numbers, in gray, or in color if that is chosen."""
    numbered = io.read_numbered(
        path, scaling=chosen.scaling, slices=chosen.slices, axes=chosen.axes, drop_empty=chosen.drop_empty
    )
    return [(number, io.with_channels(image, 3 if chosen.color else 1)) for number, image in numbered]


def perceptual(image: np.ndarray) -> int | None:
    """A hash of 64 bits that survives scaling, compression and small changes of brightness (pHash).

    None for an image that shows nothing: all of them look the same.
    """
    if image.max() == image.min():
        return None
    gray = image if image.ndim == 2 else rgb2gray(image)
    found = imagehash.phash(Image.fromarray(np.round(gray.clip(0, 1) * 255).astype(np.uint8)))
    return int.from_bytes(np.packbits(found.hash).tobytes(), "big")


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
    """The middle of the image whose sides are the largest multiples of `multiple`.

    Raises `UserError` for an image with a side smaller than `multiple`.
    """
    h, w = (n - n % multiple for n in image.shape[:2])
    if min(h, w) == 0:
        raise UserError(f"prepare.multiple={multiple}: an image of {image.shape[0]}x{image.shape[1]} is smaller")
    top, left = (image.shape[0] - h) // 2, (image.shape[1] - w) // 2
    return image[top : top + h, left : left + w]


if __name__ == "__main__":
    command.run(main, writes=("out",))
