"""The same work on many items, in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch
from tqdm import tqdm

A = TypeVar("A")
B = TypeVar("B")


def in_parallel(function: Callable[[A], B], items: Sequence[A], title: str, workers: int = 0) -> Iterator[B]:
    """The function of each item, in order, with a progress bar. workers: threads; 0 for as many as torch uses.

    Decoding, resizing and compression leave Python's lock. A few items are begun ahead, so memory does not depend on
    their number.
    """
    workers = workers or torch.get_num_threads()
    left, begun = iter(items), deque[Future[B]]()
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(items), desc=title, disable=len(items) < 50) as bar,
    ):
        begun.extend(pool.submit(function, item) for item in islice(left, 2 * workers))
        while begun:
            try:
                result = begun.popleft().result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            begun.extend(pool.submit(function, item) for item in islice(left, 1))
            bar.update()
            yield result
