"""BM3D, the classical denoiser, as a baseline: where the package `bm3d` is installed, `pip install elder[bench]`.

Its license allows noncommercial use only. Dabov, Foi, Katkovnik & Egiazarian, IEEE Trans. Image Process. 16 (2007).
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Iterable, Iterator

from elder import io
from elder.evaluation.results import Result
from elder.problems.samples import Sample
from elder.solvers.status import Status


def available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("bm3d") is not None


def evaluate_bm3d(samples: Iterable[Sample], noise: float) -> Iterator[Result]:
    """Every noisy picture y = x + e, with one or three channels, denoised for noise of the level that it has.

    noise: the standard deviation of e, in the units of the pictures, which lie in [0, 1]. Raises `ImportError` if the
    package is missing: see `available`.
    """
    package = importlib.import_module("bm3d")
    for m in samples:
        start = time.perf_counter()
        noisy = io.to_array(m.y[0])
        found = (package.bm3d if noisy.ndim == 2 else package.bm3d_rgb)(noisy, sigma_psd=noise)
        x = io.to_tensor(found.astype("float32"))
        yield Result(m, m.y, x, 1, Status.CONVERGED, None, time.perf_counter() - start)
