"""Medical scans: DICOM and NIfTI, with the values and the orientation that their headers give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from elder.errors import UserError
from elder.io.stack import Stack, checked, white_of, without_alpha


def is_dicom(path: Path) -> bool:
    """Whether the file begins with the preamble of DICOM: 128 bytes, then the letters DICM."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_nifti(path: Path) -> Stack:
    """The slices (n, h, w) of a volume along its last axis, which is head to foot after reorientation.

    The axes are turned to the nearest of right, anterior, superior, as nibabel does. Rows run from anterior to
    posterior, columns from left to right. Values are those of the header's slope and intercept. White is known for
    unsigned integers without a slope.

    Raises `UserError` if nibabel is missing, or if the file holds no volume, or values that are not finite. What
    nibabel raises passes through; `arrays.reading` turns it into a `UserError`.
    """
    nibabel: Any = optional("nibabel", path)
    image = nibabel.load(path)
    if len(image.shape) < 2:
        raise UserError(f"{path}: must hold a volume (x, y, z); got {image.shape}")
    if len(image.shape) == 2:  # a single slice
        image = nibabel.Nifti1Image(np.asanyarray(image.dataobj)[..., None], image.affine)
    values = np.asanyarray(nibabel.as_closest_canonical(image).dataobj)
    if values.dtype.names:  # colors are records of red, green, blue, and opacity
        values = np.stack([values[name] for name in values.dtype.names], -1)
        values = values.reshape(*values.shape[:2], -1, values.shape[-1])
    else:
        values = values.reshape(*values.shape[:2], -1)
    if np.iscomplexobj(values):
        values = np.abs(values)
    # From left-right and back-front to rows from the top, slice by slice.
    slices = np.moveaxis(np.rot90(values), 2, 0)
    return checked(path, Stack(without_alpha(path, slices) if slices.ndim == 4 else slices, white_of(slices.dtype)))


def read_dicom(path: Path) -> Stack:
    """The frames (n, h, w) or (n, h, w, 3) of a file, with the values that its header gives.

    Palettes and YCbCr become red, green and blue. Rescale slope and intercept, or the modality's table, are applied:
    the values of CT are Hounsfield units. MONOCHROME1, where the lowest value is white, is inverted. White is the
    largest value of the stored bits. It is unknown where values may be negative.

    Raises `UserError` if pydicom is missing, or if the file holds no pixels, or pixels that can't be decoded. What
    pydicom raises passes through; `arrays.reading` turns it into a `UserError`.
    """
    pydicom: Any = optional("pydicom", path)
    pixels: Any = optional("pydicom.pixels", path)
    data = pydicom.dcmread(path)
    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise UserError(f"{path}: holds no pixels ({_spelled(data.get('SOPClassUID'))})")
    _need_decoder(path, data, pixels)
    _refuse_high_bits(path, data)
    values = _decoded(path, data, pixels)
    frames = int(data.get("NumberOfFrames") or 1)
    values = values if frames > 1 else values[None]
    if data.PhotometricInterpretation == "PALETTE COLOR":
        return checked(path, _colored(data, values, pixels))
    if data.get("SamplesPerPixel", 1) > 1:
        return checked(path, Stack(without_alpha(path, values), float(2**data.BitsStored - 1)))
    return checked(path, _rescaled(path, data, values, pixels))


def optional(module: str, path: Path) -> Any:
    """The module that reads a file. Raises `UserError` that says what to install."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{path}: reading it needs {module}; install elder[formats]") from None


def _need_decoder(path: Path, data: Any, pixels: Any) -> None:
    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_compressed or syntax.is_deflated:
        return
    try:
        decoder = pixels.get_decoder(syntax)
    except NotImplementedError:
        raise UserError(f"{path}: pydicom can't read its compression, {_spelled(syntax)}") from None
    if not decoder.is_available:
        # One of them is enough; pydicom spells each as "NAME - requires PACKAGES".
        needed = "; or ".join(str(missing) for missing in decoder.missing_dependencies)
        raise UserError(f"{path}: its compression, {_spelled(syntax)}, needs another package: {needed}")


def _refuse_high_bits(path: Path, data: Any) -> None:
    """Raise `UserError` if stored bits do not begin at the lowest, as files before DICOM's edition of 2014 may have it.

    pydicom takes the lowest ones. A compressed file holds values, and not the bits of a word.
    """
    high, bits, syntax = data.get("HighBit"), data.get("BitsStored"), data.file_meta.get("TransferSyntaxUID")
    compressed = syntax is not None and syntax.is_compressed and not syntax.is_deflated
    if None not in (high, bits) and high != bits - 1 and not compressed:
        raise UserError(
            f"{path}: its {bits} bits end at HighBit {high}, and not at {bits - 1} as DICOM asks: convert the file, by "
            "dcmconv or gdcmconv for example"
        )


def _decoded(path: Path, data: Any, pixels: Any) -> np.ndarray:
    try:
        return np.asarray(pixels.pixel_array(data))
    except RuntimeError as error:  # each installed package has failed
        raise UserError(
            f"{path}: its compression, {_spelled(data.file_meta.TransferSyntaxUID)}, can't be decoded by the installed "
            f"packages ({' '.join(str(error).split())[-120:]}); try pip install pylibjpeg[all]"
        ) from None


def _colored(data: Any, values: np.ndarray, pixels: Any) -> Stack:
    colors = pixels.apply_color_lut(values, data)
    bits = int(data.RedPaletteColorLookupTableDescriptor[2])
    return Stack(colors[..., :3], float(2**bits - 1))


def _rescaled(path: Path, data: Any, values: np.ndarray, pixels: Any) -> Stack:
    if values.dtype.kind == "f":
        if data.PhotometricInterpretation == "MONOCHROME1":
            raise UserError(f"{path}: its largest value is black, and floating point leaves it open: save integers")
        rescaled = pixels.apply_modality_lut(values, data)
        return Stack(rescaled, white_of(values.dtype) if np.array_equal(rescaled, values) else None)
    bits = int(data.BitsStored)
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if data.PixelRepresentation else [0, 2**bits - 1])
    transforms = _transforms(data, len(values))
    if transforms:  # each frame has its own slope and intercept
        slopes, intercepts = np.array(transforms).T[..., None]
        values = values * slopes[..., None] + intercepts[..., None]
        reached = ends * slopes + intercepts
        low, high = float(reached.min()), float(reached.max())
    elif "ModalityLUTSequence" in data:
        table = data.ModalityLUTSequence[0].LUTDescriptor
        values, (low, high) = pixels.apply_modality_lut(values, data), (0.0, float(2 ** int(table[2]) - 1))
    else:
        values = pixels.apply_modality_lut(values, data)
        low, high = sorted(float(v) for v in pixels.apply_modality_lut(ends, data))
    if data.PhotometricInterpretation == "MONOCHROME1":
        values = low + high - values
    return Stack(values, high if low >= 0 else None)


def _transforms(data: Any, frames: int) -> list[tuple[float, float]]:
    """Slope and intercept of each frame of an enhanced file, 1 and 0 of frames without; nothing where none has any."""

    def of(groups: Any) -> tuple[float, float] | None:
        found = groups.get("PixelValueTransformationSequence") if groups is not None else None
        return (float(found[0].RescaleSlope), float(found[0].RescaleIntercept)) if found else None

    shared = of((data.get("SharedFunctionalGroupsSequence") or [None])[0])
    own = [of(groups) for groups in data.get("PerFrameFunctionalGroupsSequence") or [None] * frames]
    chosen = [mine or shared for mine in own]
    return [pair or (1.0, 0.0) for pair in chosen] if any(chosen) else []


def _spelled(uid: Any) -> str:
    return getattr(uid, "name", None) or str(uid)
