"""Clean images from files of every kind that the field uses: pictures, arrays, and volumes slice by slice."""

from __future__ import annotations

import itertools
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from elder.errors import DataWarning, UserError
from elder.io.arrays import ARRAYS, read_arrays, reading
from elder.io.pictures import PICTURES, read_picture, read_unchecked
from elder.io.scans import is_dicom, read_dicom, read_nifti
from elder.io.stack import Scaling, Stack, check_scaling, scale, stacked

NIFTI, DICOM = (".nii.gz", ".nii"), (".dcm", ".ima")
# In a file of several arrays, the one that holds the images; the first three are fastMRI's.
KEYS = ("reconstruction_rss", "reconstruction_esc", "kspace", "image", "images", "y")
# Files that lie beside images and are none.
DOCUMENTS = (".txt", ".md", ".csv", ".json", ".yaml", ".yml", ".pdf", ".html", ".xml", ".log", ".py")
DIRECTORY_OF_DICOM = "dicomdir"
# Of a volume, a slice is empty if its values span less than this share of the volume's.
EMPTY = 0.05


def list_sources(folder: str | Path) -> list[Path]:
    """The files below a folder that `read_images` knows, sorted.

    Links to folders are followed. Hidden files and folders are not looked at. DICOM files are known by their content,
    whatever their names. Warns of files of other kinds, which are left out. Raises `UserError` when no file is left.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found, others = [], []
    for path in sorted(_walk(folder)):
        if kind_of(path) is not None:
            found.append(path)
        elif path.suffix.lower() not in DOCUMENTS and path.name.lower() != DIRECTORY_OF_DICOM:
            others.append(path)
    if not found:
        raise UserError(f"{folder}: holds no picture; known are {' '.join(READERS)}")
    if others:
        warnings.warn(
            f"{folder}: {len(others)} files of unknown kinds are left out, such as {others[0].name}",
            DataWarning,
            stacklevel=2,
        )
    return found


def check_axes(axes: str, paths: Sequence[Path]) -> None:
    """Raise `UserError` if there is an order of axes and none of the files holds an array, for which it is meant."""
    if axes and not any(READERS.get(kind_of(path) or "") is _arrays for path in paths):
        names = ", ".join(path.name for path in paths[:2]) + ", ..." * (len(paths) > 2)
        raise UserError(f"axes={axes}: is for arrays, and {names} are pictures or scans: leave it out")


def kind_of(path: Path) -> str | None:
    """The suffix that stands for the kind of a file, `.nii.gz` as one, or None for a kind that is not known.

    A file whose name tells nothing is looked into: DICOM files often have names without a suffix.
    """
    if suffix := _suffix(path):
        return suffix
    by_content = path.name.lower() != DIRECTORY_OF_DICOM and path.is_file() and is_dicom(path)
    return DICOM[0] if by_content else None


def file_names(paths: Sequence[Path], folder: str | Path) -> list[str]:
    """A name for each file, unique among them: its path below `folder`, parts joined by `__`, without the suffix.

    Files whose names would be the same keep their suffixes, as a.jpg and a.png do; those that still are get a number.
    Capital letters do not make a difference, since some file systems see none.
    """
    full = ["__".join(path.relative_to(folder).parts) for path in paths]
    short = [name[: -len(_suffix(path))] if _suffix(path) else name for name, path in zip(full, paths, strict=True)]
    counts, names = Counter(name.lower() for name in short), Names()
    return [names.claim(s if counts[s.lower()] == 1 else f) for s, f in zip(short, full, strict=True)]


class Names:
    """Names that have been given; none is given twice, whatever its capital letters."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def claim(self, name: str) -> str:
        """The name, or where it has been given, the name with the first number that makes it a new one."""
        candidates = itertools.chain([name], (f"{name}~{number}" for number in itertools.count(2)))
        free = next(candidate for candidate in candidates if candidate.lower() not in self._given)
        self._given.add(free.lower())
        return free


def read_image(path: str | Path, *, scaling: Scaling = "range") -> np.ndarray:
    """The one picture of a file, float32 (h, w) or (h, w, 3) in [0, 1]; see `read_images`.

    Raises `UserError` if it holds several, and what `read_images` raises.
    """
    images = read_images(path, scaling=scaling)
    if len(images) > 1:
        raise UserError(f"{path}: must be one picture; it holds {len(images)}")
    return images[0]


def read_measured(path: str | Path, *, as_stored: bool = False) -> np.ndarray:
    """The one picture of a file as a measurement, (h, w) or (h, w, 3): integers in [0, 1], others as they are.

    Values may be complex. Floating point may be negative, by noise, and NaN where pixels are missing. as_stored:
    whether integers stay in the units of the file, for a caller who knows the value of white.
    Raises `UserError` if the file is missing, corrupt or unknown, or holds several pictures.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with reading(path, path.suffix.lower()):
        values = read_unchecked(path).values
    return values[0] if (as_stored or values.dtype.kind in "fc") and len(values) == 1 else read_image(path)


def read_images(
    path: str | Path, *, scaling: Scaling = "range", slices: int = 0, axes: str = "", drop_empty: bool = False
) -> list[np.ndarray]:
    """The images of a file, float32 (h, w) or (h, w, 3) in [0, 1].

    Complex values give their magnitude; fastMRI's k-space the root sum of squares of its coils.

    Args:
        path: a file of one of the kinds in `READERS`, or DICOM under any name.
        scaling: how values are brought to [0, 1], see `elder.io.stack.scale`.
        slices: how many of a volume, from its middle; 0 for all.
        axes: the order of the axes of an array, one of `elder.io.stack.AXES`; empty: by the rule of `guess_axes`.
        drop_empty: whether slices without content are left out of a volume of which others have some.

    Raises:
        UserError: for a corrupt or unknown file, axes that are ambiguous, NaN, or values that the scaling refuses.
    """
    numbered = read_numbered(path, scaling=scaling, slices=slices, axes=axes, drop_empty=drop_empty)
    return [image for _, image in numbered]


def read_numbered(
    path: str | Path, *, scaling: Scaling = "range", slices: int = 0, axes: str = "", drop_empty: bool = False
) -> list[tuple[int | None, np.ndarray]]:
    """What `read_images` gives, each image with its number in the file: from 0, or `None` if the file holds one image.

    Raises what `read_images` raises.
    """
    path = Path(path)
    check_scaling(scaling)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    kind = kind_of(path)
    if kind is None:
        raise UserError(f"{path}: can't read {path.suffix or 'a file without suffix'}; known are {' '.join(READERS)}")
    with reading(path, kind):
        images = list(scale(path, READERS[kind](path, axes), scaling))
    if min(images[0].shape[:2]) < 2:
        raise UserError(f"{path}: a picture of {images[0].shape[0]}x{images[0].shape[1]} is too small: 2x2 at least")
    kept = _with_content(images) if drop_empty else range(len(images))
    first = (len(kept) - slices) // 2 if 0 < slices < len(kept) else 0
    chosen = kept[first : first + slices] if slices else kept
    return [(number if len(images) > 1 else None, images[number]) for number in chosen]


def _with_content(images: Sequence[np.ndarray]) -> Sequence[int]:
    """The numbers of the images that are not empty beside the others; all if none is left."""
    spans = [float(image.max() - image.min()) for image in images]
    whole = max(float(image.max()) for image in images) - min(float(image.min()) for image in images)
    return [number for number, span in enumerate(spans) if span > EMPTY * whole] or range(len(images))


def numbered_name(name: str, number: int | None) -> str:
    """The name of an image: that of its file, and behind it its number if it has one."""
    return name if number is None else f"{name}-{number}"


def _walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files below a folder; a link back to a folder above is not followed."""
    here = folder.resolve()
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            if entry.is_dir():
                yield from _walk(path, above | {here})
            elif entry.is_file():
                yield path


def _suffix(path: Path) -> str:
    """The part of the name that tells the kind; empty where only the content does."""
    name = path.name.lower()
    return next((suffix for suffix in READERS if name.endswith(suffix)), "")


def _picture(path: Path, axes: str) -> Stack:
    return read_picture(path)


def _scan(path: Path, axes: str) -> Stack:
    return read_dicom(path) if kind_of(path) in DICOM else read_nifti(path)


def _arrays(path: Path, axes: str) -> Stack:
    arrays = read_arrays(path, KEYS)
    key = next((key for key in KEYS if key in arrays), None)
    if key is None and len(arrays) > 1:
        raise UserError(f"{path}: holds {', '.join(sorted(arrays))}; name the images {' or '.join(KEYS)}")
    values = arrays[key] if key else next(iter(arrays.values()))
    if values.dtype == object:
        raise UserError(f"{path}: holds a cell array: save its cells as one array, or each in a file of its own")
    return stacked(path, values, axes) if key != "kspace" else stacked(path, _coils_combined(path, arrays), "nhw")


def _coils_combined(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Pictures (slices, h, w) from k-space (slices, coils, h, w), or (slices, h, w) of one coil; centered."""
    if "mask" in arrays and not arrays["mask"].all():
        raise UserError(
            f"{path}: its k-space was sampled by a mask ({arrays['mask'].mean():.0%}): it holds no clean picture; "
            "take fully sampled files"
        )
    kspace = arrays["kspace"]
    if kspace.ndim not in (3, 4):
        raise UserError(f"{path}: kspace must be (slices, coils, h, w) or (slices, h, w); got {kspace.shape}")
    lines = np.flatnonzero(np.abs(kspace).max(axis=tuple(range(kspace.ndim - 1))))
    if not np.iscomplexobj(kspace):
        raise UserError(f"{path}: kspace must be complex; it holds {kspace.dtype} {kspace.shape}")
    if len(lines) and len(lines) <= lines[-1] - lines[0]:  # at the ends they are padding
        raise UserError(
            f"{path}: columns of its k-space are zero between others: it was sampled by a mask, and holds no clean "
            "picture; take fully sampled files"
        )
    shape = (-2, -1)
    coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, shape), norm="ortho"), shape)
    return np.sqrt((np.abs(coils) ** 2).sum(1)) if coils.ndim == 4 else np.abs(coils)


READERS: dict[str, Callable[[Path, str], Stack]] = {
    **dict.fromkeys(PICTURES, _picture),
    **{suffix: _arrays for suffix in ARRAYS if suffix not in PICTURES},
    **dict.fromkeys((*NIFTI, *DICOM), _scan),
}
