"""Pictures that look the same in two splits, found by their perceptual hashes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elder.errors import UserError
from pipeline.pictures.splits import SPLITS

BITS = 64
# Bits in which the perceptual hashes of near-duplicates differ at most; other photographs differ in some 30.
NEAR = 4


@dataclass(frozen=True)
class Picture:
    """A picture of the source, and what it looks like."""

    name: str  # unique in its split
    split: str
    sha256: str  # of its values in [0, 1]
    look: int | None  # its perceptual hash, 64 bits; `None` if it shows nothing: all of these look the same


def refuse_duplicates(pictures: Sequence[Picture]) -> None:
    """Raise `UserError` when one picture, or two that look the same, are in two splits. It names all of them."""
    shown = [picture for picture in pictures if picture.look is not None]
    hashes = np.array([picture.look for picture in shown], dtype=np.uint64)
    parts = np.array([SPLITS.index(picture.split) for picture in shown], dtype=np.int64)
    same, alike = [], []
    for a, b in ((shown[i], shown[j]) for i, j in near_pairs(hashes, parts, NEAR)):
        (same if a.sha256 == b.sha256 else alike).append(f"{a.name} ({a.split}) and {b.name} ({b.split})")
    kinds = ((same, "are one picture"), (alike, "look the same"))
    told = [f"{', '.join(pairs)} {what}" for pairs, what in kinds if pairs]
    if told:
        remedy = "remove one" if len(same) + len(alike) == 1 else "remove one of each pair"
        also = ", put both into one split by a list in prepare.split, or into one group by prepare.group"
        raise UserError(f"{'; '.join(told)}: {remedy}{also if alike else ''}")


def near_pairs(hashes: NDArray[np.uint64], groups: NDArray[np.int64], radius: int) -> NDArray[np.int64]:
    """The pairs i < j of different groups whose hashes differ in at most `radius` bits, (k, 2), in rising order.

    Exact, by multi-index hashing (Norouzi, Punjani & Fleet 2014): the bits are dealt out to radius + m bands. Hashes
    that differ in `radius` bits agree in m bands at least, so each choice of m bands is a key under which they meet. m
    is the least with which a key has as many values as there are hashes. So few others meet: for hashes that are spread
    evenly, time is that of sorting, n log n, and memory grows with n and with the pairs found.

    Args:
        hashes: (n,), 64 bits each.
        groups: (n,), such as the number of the split. Pairs within a group are not looked for.
        radius: from 0 to 32.
    """
    found = [np.empty((0, 2), dtype=np.int64)]
    if len(hashes) < 2:
        return found[0]
    found += [_meeting(hashes, groups, radius, mask) for mask in _keys(len(hashes), radius)]
    return np.unique(np.concatenate(found), axis=0)


def _keys(count: int, radius: int) -> list[np.uint64]:
    """The masks of bits under which `count` hashes are sorted."""
    wanted = max(1, count - 1).bit_length()
    most = BITS - radius
    kept = next((m for m in range(1, most) if BITS // (radius + m) * m >= wanted), most)
    # Neighboring bits of a perceptual hash depend on each other, so each band gets bits from everywhere.
    bands = [sum(1 << bit for bit in range(start, BITS, radius + kept)) for start in range(radius + kept)]
    return [np.uint64(sum(chosen)) for chosen in itertools.combinations(bands, kept)]


def _meeting(hashes: NDArray[np.uint64], groups: NDArray[np.int64], radius: int, mask: np.uint64) -> NDArray[np.int64]:
    """Those of the pairs whose hashes agree in the bits of `mask`, (k, 2), in any order."""
    order = np.argsort(hashes & mask, kind="stable")
    keys = (hashes & mask)[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    lengths = np.diff(np.append(starts, len(keys)))
    sorted_groups = groups[order]
    mixed = np.minimum.reduceat(sorted_groups, starts) != np.maximum.reduceat(sorted_groups, starts)
    # The end of each hash's run of equal keys; runs of a single group hold no pair.
    ends = np.repeat(np.where(mixed, starts + lengths, 0), lengths)
    found = [np.empty((0, 2), dtype=np.int64)]
    first = np.arange(len(order))
    for gap in range(1, len(order)):
        first = first[first + gap < ends[first]]
        if not len(first):
            break
        a, b = order[first], order[first + gap]
        near = (groups[a] != groups[b]) & (np.bitwise_count(hashes[a] ^ hashes[b]) <= radius)
        found.append(np.stack([a[near], b[near]], axis=1))
    return np.sort(np.concatenate(found), axis=1)
