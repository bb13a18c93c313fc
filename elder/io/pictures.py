"""Picture files: reading, writing, and conversion to tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elder.errors import UserError
from elder.io.atomic import replacing
from elder.io.stack import Stack, checked, white_of, without_alpha

TIFF = (".tif", ".tiff")
PICTURES = (".png", ".jpg", ".jpeg", *TIFF, ".bmp", ".webp", ".jp2")
# Color models that are no plain numbers of red, green and blue, and what Pillow turns them into.
CONVERTED = {"P": "RGBA", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "RGBX": "RGB"}
TRANSPARENT = {"L": "LA", "RGB": "RGBA"}


def read_picture(path: Path) -> Stack:
    """The pictures of a file, (1, h, w) or (1, h, w, 3); a TIFF file may hold several pages.

    Palettes, CMYK and YCbCr become red, green and blue. Black-is-white files are inverted. Opacity is left out. The
    orientation that a camera noted is applied. White is the largest value of the bits that the file declares. Complex
    values give their magnitude.
    """
    stack = read_unchecked(path)
    return checked(path, Stack(np.abs(stack.values), 1.0) if np.iscomplexobj(stack.values) else stack)


def read_unchecked(path: Path) -> Stack:
    """The same with complex values, and with NaN and infinity, which may stand for missing pixels of a measurement."""
    return _read_tiff(path) if path.suffix.lower() in TIFF else _read_pillow(path)


def write_image(path: str | Path, image: np.ndarray, *, plain: bool = False) -> None:
    """Write a picture (h, w) or (h, w, 3): .tif and .npy keep float32, .png is clipped to [0, 1] and has 8 bits.

    plain: whether .tif is written without compression, so that `stored_image` reads parts of it.
    Raises `UserError` for a suffix that is none of .png, .jpg, .tif and .npy, and what `replacing` raises.
    """
    import tifffile
    from PIL import Image

    suffix = Path(path).suffix.lower()
    with replacing(path) as temporary:
        if suffix == ".npy":
            np.save(temporary, image.astype(np.float32), allow_pickle=False)
        elif suffix in TIFF:
            photometric = "rgb" if image.ndim == 3 else "minisblack"
            compression = None if plain else "zlib"
            tifffile.imwrite(
                temporary, image.astype(np.float32), compression=compression, photometric=photometric, metadata=None
            )
        elif suffix in (".png", ".jpg", ".jpeg"):
            Image.fromarray(np.round(image.clip(0, 1) * 255).astype(np.uint8)).save(temporary)
        else:
            raise UserError(f"{path}: can't write {suffix or 'a file without suffix'}; known are .png .jpg .tif .npy")


def to_tensor(image: np.ndarray) -> Tensor:
    """(h, w) or (h, w, c) as (1, c, h, w) float32."""
    array = image[..., None] if image.ndim == 2 else image
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)[None], dtype=np.float32))


def to_array(x: Tensor) -> np.ndarray:
    """One picture (c, h, w) as (h, w), or (h, w, 3) for color."""
    array = x.detach().cpu().float().numpy()
    return array[0] if len(array) == 1 else array.transpose(1, 2, 0)


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """The picture (h, w) or (h, w, 3) in gray for 1 channel, in color for 3.

    The gray of a color picture is its luminance, 0.2125 R + 0.7154 G + 0.0721 B (scikit-image's `rgb2gray`). The colors
    of a gray picture are three times its gray.
    """
    from skimage.color import rgb2gray

    if channels == 3:
        return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)
    return rgb2gray(image) if image.ndim == 3 else image


def _read_pillow(path: Path) -> Stack:
    from PIL import Image

    with Image.open(path) as image:
        # A JPEG file may carry a preview or a second view after the photograph.
        if getattr(image, "n_frames", 1) > 1 and image.format not in ("JPEG", "MPO"):
            raise UserError(f"{path}: holds {getattr(image, 'n_frames', 1)} frames: save the one that is meant")
        return _frames(path, [image])


def _frames(path: Path, frames: Any) -> Stack:
    """The stack of Pillow's frames."""
    from PIL import ImageOps

    arrays = [np.asarray(_plain(ImageOps.exif_transpose(frame))) for frame in frames]
    if len({(a.shape, a.dtype) for a in arrays}) > 1:
        raise UserError(f"{path}: holds pictures of different sizes or kinds: save each in a file of its own")
    values = np.stack(arrays)
    return Stack(without_alpha(path, values) if values.ndim == 4 else values, white_of(values.dtype))


def _plain(image: Any) -> Any:
    """The image with plain numbers of gray, or of red, green and blue, and opacity if it has one."""
    if image.mode == "P" and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode in TRANSPARENT and "transparency" in image.info:  # one gray or color stands for it
        return image.convert(TRANSPARENT[image.mode])
    return image.convert(CONVERTED[image.mode]) if image.mode in CONVERTED else image


def _read_tiff(path: Path) -> Stack:
    import tifffile
    from PIL import Image, ImageSequence

    with tifffile.TiffFile(path) as file:
        # A file may hold smaller copies of its picture.
        series = [s for s in file.series if not s.keyframe.is_reduced]
        if len(series) != 1:
            raise UserError(f"{path}: holds pictures of different sizes or kinds: save each in a file of its own")
        page: Any = series[0].keyframe
        kind = COLOR_MODELS.get(page.photometric.name)
        try:
            values = None if kind is None else series[0].asarray()
        except (ValueError, NotImplementedError, ImportError) as error:
            if not isinstance(error, ImportError) and "imagecodecs" not in str(error):
                raise
            values = None  # a compression that Pillow may know
        _refuse_channels(path, series[0].shape, series[0].axes)
        if kind is not None and values is not None:
            upright = UPRIGHT.get(page.tags.valueof(ORIENTATION, 1), lambda stack: stack)
            return kind(path, upright(_axes(path, values, series[0].axes)), page)
    _refuse_unknown_to_pillow(path, page)
    with Image.open(path) as image:
        stack = _frames(path, ImageSequence.Iterator(image))
    # Pillow inverts up to 8 bits by itself.
    dark = page.photometric.name == "MINISWHITE" and page.bitspersample > 8
    return Stack(_inverse(path, stack.values, stack.white), stack.white) if dark else stack


def _refuse_unknown_to_pillow(path: Path, page: Any) -> None:
    """Raise `UserError` for a TIFF page whose numbers are none of `IN_PILLOW`: Pillow would give others for them."""
    samples = page.samplesperpixel - len(page.extrasamples)
    kind = {1: "unsigned", 2: "signed", 3: "floating point"}.get(page.sampleformat, "no real numbers")
    if kind not in (IN_PILLOW if samples == 1 else IN_PILLOW_COLOR).get(page.bitspersample, ()):
        raise UserError(
            f"{path}: can't read {page.bitspersample} bits, {kind}, with compression {page.compression.name}: pip "
            "install imagecodecs, or save 8, 16 or 32 bits uncompressed"
        )


def _axes(path: Path, values: np.ndarray, axes: str) -> np.ndarray:
    """(n, h, w, samples) from the axes of a TIFF file: Y, X, S for samples, C for channels; others count pages."""
    if "Y" not in axes or "X" not in axes:
        raise UserError(f"{path}: holds no pictures, but axes {axes}")
    samples = "S" in axes
    last = [axes.index(a) for a in ("YXS" if samples else "YX")]
    moved = np.moveaxis(values, last, range(-len(last), 0))
    tail = moved.shape[-3:] if samples else (*moved.shape[-2:], 1)
    return moved.reshape(-1, *tail)


def _refuse_channels(path: Path, shape: tuple[int, ...], axes: str) -> None:
    if "C" in axes and shape[axes.index("C")] > 1:
        raise UserError(f"{path}: holds {shape[axes.index('C')]} channels that are no colors: save one of them")


def _colors(path: Path, values: np.ndarray, page: Any) -> Stack:
    return Stack(without_alpha(path, values), _white(values, page))


def _gray(path: Path, values: np.ndarray, page: Any) -> Stack:
    if values.shape[-1] > 2:
        raise UserError(f"{path}: holds {values.shape[-1]} channels that are no colors: save one of them")
    return _colors(path, values, page)


# The numbers that Pillow reads as they are, by their bits. It cuts colors of 16 bits to 8.
IN_PILLOW_COLOR = dict.fromkeys((1, 2, 4, 8), ("unsigned",))
IN_PILLOW = IN_PILLOW_COLOR | {16: ("unsigned", "signed"), 32: ("signed", "floating point"), 64: ("floating point",)}

# How pages (n, h, w, samples) are turned upright, by the number that a camera or scanner noted.
ORIENTATION = 274
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, :, ::-1],
    3: lambda a: a[:, ::-1, ::-1],
    4: lambda a: a[:, ::-1],
    5: lambda a: a.swapaxes(1, 2),
    6: lambda a: np.rot90(a, -1, (1, 2)),
    7: lambda a: a[:, ::-1, ::-1].swapaxes(1, 2),
    8: lambda a: np.rot90(a, 1, (1, 2)),
}


def _inverted(path: Path, values: np.ndarray, page: Any) -> Stack:
    white = _white(values, page)
    return Stack(_inverse(path, without_alpha(path, values), white), white)


def _inverse(path: Path, gray: np.ndarray, white: float | None) -> np.ndarray:
    """Pictures whose zero is white, black as zero."""
    if white is None:
        raise UserError(f"{path}: its largest value is black, and {gray.dtype} leaves it open: save 8 or 16 bits")
    return ~gray if gray.dtype == bool else gray.dtype.type(white) - gray


def _palette(path: Path, values: np.ndarray, page: Any) -> Stack:
    # Colors have 16 bits in the file. Of 8-bit ones, writers put the bits first and leave the others zero.
    return Stack(np.moveaxis(page.colormap[:, values[..., 0]] >> 8, 0, -1), 255.0)


# How the samples of a page are read, by the name of its photometric interpretation; Pillow reads the others.
COLOR_MODELS: dict[str, Callable[[Path, np.ndarray, Any], Stack]] = {
    "MINISBLACK": _gray,
    "RGB": _colors,
    "MINISWHITE": _inverted,
    "PALETTE": _palette,
}


def _white(values: np.ndarray, page: Any) -> float | None:
    """The value of white: of as many bits as the page declares."""
    if np.issubdtype(values.dtype, np.unsignedinteger) and page.bitspersample <= 16:
        return float(2**page.bitspersample - 1)
    return white_of(values.dtype)
