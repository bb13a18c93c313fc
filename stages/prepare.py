"""Images from a source into train, validation and test, each image in one of them only."""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path

import numpy as np
import skimage
import torch
from skimage.color import rgb2gray
from skimage.transform import resize

from elder import files
from elder.errors import UserError
from stages import settings
from stages.params import Preparation

SPLITS = ("train", "validation", "test")
# One photograph in one split; the right half of the motorcycle's stereo pair is left out for that reason.
BUILTIN = {
    "train": ("motorcycle_left.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "moon.png", "brick.png",
              "grass.png", "cell.png", "page.png"),
    "validation": ("coins.png", "gravel.png", "rocket.jpg"),
    "test": ("camera.png", "chelsea.png", "astronaut.png", "coffee.png"),
}  # fmt: skip


def main(arguments: argparse.Namespace) -> None:
    """Split the source's images, make them grey or coloured and of one size, and write float32 TIFF with a manifest."""
    chosen = settings.typed(Preparation, "prepare")
    sources = builtin() if chosen.source == "builtin" else split(files.list_images(arguments.folder), chosen)
    temporary = arguments.out.with_name(f".{arguments.out.name}-partial")
    shutil.rmtree(temporary, ignore_errors=True)
    rows = [row for name in SPLITS for path in sources[name] for row in write(path, name, temporary, chosen)]
    refuse_duplicates(rows)
    files.write_json(temporary / "manifest.json", {"source": chosen.source, "images": rows})
    shutil.rmtree(arguments.out, ignore_errors=True)
    temporary.rename(arguments.out)
    print(", ".join(f"{len(sources[name])} {name}" for name in SPLITS), f"images in {arguments.out}")


def builtin() -> dict[str, list[Path]]:
    """The photographs that ship inside scikit-image."""
    folder = Path(skimage.__file__).parent / "data"
    return {name: [folder / file for file in names] for name, names in BUILTIN.items()}


def split(paths: list[Path], chosen: Preparation) -> dict[str, list[Path]]:
    """A seeded split of a folder, at least one image to each part."""
    if len(paths) < 3:
        raise UserError(f"prepare.folder={chosen.folder} holds {len(paths)} images; train, validation, test need 3")
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(chosen.seed)).tolist()
    validation = max(1, round(chosen.validation_share * len(paths)))
    test = min(max(1, round(chosen.test_share * len(paths))), len(paths) - validation - 1)
    parts = {"validation": order[:validation], "test": order[validation : validation + test]}
    parts["train"] = order[validation + test :]
    return {name: sorted(paths[i] for i in parts[name]) for name in SPLITS}


def write(path: Path, part: str, out: Path, chosen: Preparation) -> list[dict[str, object]]:
    """One source image: its training copies, or its central square."""
    image = files.read_image(path)
    image = with_channels(image, color=chosen.color)
    digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
    scales = chosen.train_scales if part == "train" else [1.0]
    rows = []
    for scale in scales:
        sized = shrink(image, round(chosen.size * scale))
        picture = sized if part == "train" else central_square(sized, chosen.size)
        name = "__".join(path.with_suffix("").parts[-1:]) + ("" if len(scales) == 1 else f"@{scale:g}")
        target = out / part / f"{name}.tif"
        if target.exists():
            raise UserError(f"{path}: another image has the name {name}; rename one")
        files.write_image(target, picture)
        rows.append({"name": name, "split": part, "sha256": digest, "height": len(picture), "width": picture.shape[1]})
    return rows


def with_channels(image: np.ndarray, *, color: bool) -> np.ndarray:
    """(h, w, 3) if colour is wanted, else (h, w)."""
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


def refuse_duplicates(rows: list[dict[str, object]]) -> None:
    """Raise `UserError` when one picture is in two splits."""
    seen: dict[object, dict[str, object]] = {}
    for row in rows:
        first = seen.setdefault(row["sha256"], row)
        if first["split"] != row["split"]:
            raise UserError(
                f"{first['name']} ({first['split']}) and {row['name']} ({row['split']}) are one picture: remove one"
            )


if __name__ == "__main__":
    settings.run(main, "folder", "out")
