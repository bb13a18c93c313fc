"""Drawing what a training step needs while the step before computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Ahead(Generic[T]):
    """Draws for the next step while a step computes: reading patches, masks and kernels takes time of a processor.

    One thread draws, from one generator, step by step. So the numbers are those of drawing when they are needed.
    """

    def __init__(self, make: Callable[[int, torch.Generator], T], generator: torch.Generator, last: int) -> None:
        """make: what a step draws, from its number. last: the number of the last step."""
        self._make, self._generator, self._last = make, generator, last
        self._thread = ThreadPoolExecutor(1, "draws")
        self._next: Future[T] | None = None
        self._state = generator.get_state()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, step: int) -> T:
        """What step `step` draws; the steps must be taken one after another. What `make` raises is raised here."""
        made = (self._next or self._thread.submit(self._make, step, self._generator)).result()
        self._state = self._generator.get_state()
        self._next = self._thread.submit(self._make, step + 1, self._generator) if step < self._last else None
        return made

    @property
    def state(self) -> Tensor:
        """The state of the generator behind the last step that was taken, from which training resumes."""
        return self._state
