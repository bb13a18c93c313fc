"""Batches of patches from clean images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import EllipsisType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from elder.errors import UserError


@runtime_checkable
class Pixels(Protocol):
    """A picture of which parts can be taken: a tensor, or one that stays on disk, such as `io.StoredImage`."""

    @property
    def shape(self) -> Sequence[int]:
        """(1, c, h, w)."""
        ...

    def __getitem__(self, part: tuple[EllipsisType, slice, slice], /) -> Tensor:
        """The rows and columns, (1, c, k, l)."""
        ...


@dataclass(frozen=True, eq=False)
class Patches:
    """Square patches drawn at random from images of any sizes, turned and mirrored at random.

    Images are drawn with a chance in proportion to their area. Raises `UserError` for an image smaller than the patch.
    """

    images: Sequence[Pixels]  # (1, c, h, w) each
    size: int
    names: Sequence[str]

    def __post_init__(self) -> None:
        for image, name in zip(self.images, self.names, strict=True):
            if min(image.shape[-2:]) < self.size:
                h, w = image.shape[-2:]
                raise UserError(f"{name} is {h}x{w}, smaller than patch={self.size}: lower patch or leave it out")

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """(batch, c, size, size) in [0, 1]."""
        chosen = torch.multinomial(self._areas, batch, replacement=True, generator=generator)
        return torch.cat([self._patch(self.images[i], generator) for i in chosen.tolist()])

    @cached_property
    def _areas(self) -> Tensor:
        """The pixels of each image, (n,)."""
        return torch.tensor([float(image.shape[-2] * image.shape[-1]) for image in self.images])

    def _patch(self, image: Pixels, generator: torch.Generator) -> Tensor:
        top, left = (int(torch.randint(n - self.size + 1, (), generator=generator)) for n in image.shape[-2:])
        patch = image[..., top : top + self.size, left : left + self.size]
        turns, mirror = int(torch.randint(4, (), generator=generator)), int(torch.randint(2, (), generator=generator))
        patch = torch.rot90(patch, turns, (-2, -1))
        return patch.flip(-1) if mirror else patch
