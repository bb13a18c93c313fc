"""Images from a source into train, validation and test, each image in one of them only."""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import shutil
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import skimage
import torch
from PIL import Image
from skimage.color import rgb2gray
from skimage.transform import resize

from elder import io
from elder.errors import UserError
from pipeline import params
from pipeline.params import Preparation
from stages import command

SPLITS = ("train", "validation", "test")
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
    parts = builtin() if chosen.source == "builtin" else split(arguments.folder, chosen)
    temporary = arguments.out.with_name(f".{arguments.out.name}-partial")
    shutil.rmtree(temporary, ignore_errors=True)
    rows = [row for name in SPLITS for path in parts[name] for row in write(path, name, temporary, chosen)]
    refuse_duplicates(rows)
    listed = [{key: value for key, value in row.items() if key != "perceptual"} for row in rows]
    io.write_json(temporary / "manifest.json", {"source": chosen.source, "images": listed})
    shutil.rmtree(arguments.out, ignore_errors=True)
    temporary.rename(arguments.out)
    counts = {name: sum(row["split"] == name for row in rows) for name in SPLITS}
    print(", ".join(f"{counts[name]} {name}" for name in SPLITS), f"images in {arguments.out}")


def builtin() -> dict[str, list[Path]]:
    """The photographs that ship inside scikit-image."""
    folder = Path(skimage.__file__).parent / "data"
    return {name: [folder / file for file in names] for name, names in BUILTIN.items()}


def split(folder: Path, chosen: Preparation) -> dict[str, list[Path]]:
    """The files of a folder, each in one part: by the settings' shares, by the folders they lie in, or by a list."""
    paths = io.list_sources(folder)
    if chosen.split == "random":
        return at_random(paths, chosen)
    named = {path: path.relative_to(folder).as_posix() for path in paths}
    if chosen.split == "folders":
        where = {name: name.split("/")[0] for name in named.values()}
        hint = f"prepare.split=folders wants the images in {', '.join(SPLITS)} below {folder}"
    else:
        where = listed_split(Path(chosen.split))
        hint = f"prepare.split={chosen.split} must give each file one of {', '.join(SPLITS)}"
    for name in named.values():
        if where.get(name) not in SPLITS:
            raise UserError(f"{hint}; {name} has {where.get(name, 'none')}")
    parts = {part: [path for path, name in named.items() if where[name] == part] for part in SPLITS}
    for part, members in parts.items():
        if not members:
            raise UserError(f"{hint}; {part} is empty")
    return parts


def listed_split(path: Path) -> dict[str, str]:
    """The lines `name,split` of a CSV file, names relative to the folder."""
    try:
        with path.open(newline="") as file:
            return {row["name"]: row["split"] for row in csv.DictReader(file)}
    except FileNotFoundError:
        raise UserError(f"prepare.split={path} must be random, folders or a CSV file that exists") from None
    except KeyError as error:
        raise UserError(f"{path}: lacks the column {error.args[0]}; its columns must be name and split") from None


def at_random(paths: list[Path], chosen: Preparation) -> dict[str, list[Path]]:
    """A seeded split, at least one file to each part."""
    if len(paths) < 3:
        raise UserError(f"prepare.folder={chosen.folder} holds {len(paths)} files; train, validation, test need 3")
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(chosen.seed)).tolist()
    validation = max(1, round(chosen.validation_share * len(paths)))
    test = min(max(1, round(chosen.test_share * len(paths))), len(paths) - validation - 1)
    parts = {"validation": order[:validation], "test": order[validation : validation + test]}
    parts["train"] = order[validation + test :]
    return {name: sorted(paths[i] for i in parts[name]) for name in SPLITS}


def write(path: Path, part: str, out: Path, chosen: Preparation) -> list[dict[str, Any]]:
    """The images of one source file: training copies of each, or its central square."""
    scales = chosen.train_scales if part == "train" else [1.0]
    images = io.read_images(path, scaling=chosen.scaling, slices=chosen.slices)
    rows = []
    for index, image in enumerate(images):
        image = with_channels(image, color=chosen.color)
        digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
        for scale in scales:
            sized = shrink(image, round(chosen.shorter_side * scale))
            picture = sized if part == "train" else central_square(sized, chosen.shorter_side)
            name = io.stem(path) + (f"-{index}" if len(images) > 1 else "")
            name += "" if len(scales) == 1 else f"@{scale:g}"
            target = out / part / f"{name}.tif"
            if target.exists():
                raise UserError(f"{path}: another image has the name {name}; rename one")
            io.write_image(target, picture)
            shape = {"height": picture.shape[0], "width": picture.shape[1]}
            rows.append({"name": name, "split": part, "sha256": digest, "perceptual": perceptual(image), **shape})
    return rows


def perceptual(image: np.ndarray) -> imagehash.ImageHash:
    """A hash that survives scaling, compression and small changes of brightness (pHash, 64 bits)."""
    gray = image if image.ndim == 2 else rgb2gray(image)
    return imagehash.phash(Image.fromarray(np.round(gray.clip(0, 1) * 255).astype(np.uint8)))


def with_channels(image: np.ndarray, *, color: bool) -> np.ndarray:
    """(h, w, 3) if color is wanted, else (h, w)."""
    if color:
        return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)
    return rgb2gray(image) if image.ndim == 3 else image


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


def refuse_duplicates(rows: list[dict[str, Any]]) -> None:
    """Raise `UserError` when one picture, or two that look the same, are in two splits."""
    for a, b in itertools.combinations(rows, 2):
        if a["split"] == b["split"]:
            continue
        if a["sha256"] == b["sha256"]:
            raise UserError(f"{a['name']} ({a['split']}) and {b['name']} ({b['split']}) are one picture: remove one")
        if a["perceptual"] - b["perceptual"] <= NEAR:
            raise UserError(
                f"{a['name']} ({a['split']}) and {b['name']} ({b['split']}) look the same: remove one, or put "
                "both into one split by a list in prepare.split"
            )


if __name__ == "__main__":
    command.run(main, reads=("folder",), writes=("out",))
