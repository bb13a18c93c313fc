"""What evaluating ridges strip by strip saves in time and memory: `python -m benchmarks.ridges`.

Value and gradient on a photograph of 321x481 and on a picture of one megapixel, beside the same with all responses at
once. The memory is what one evaluation adds to the peak of a process of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from functools import partial

import torch

from benchmarks.common import Row, counted, main, paired, summarized
from elder import regularizers
from elder.networks import strips
from elder.regularizers.base import Energy

NAMES = ("convex_ridge", "weakly_convex_ridge", "wcrr")
SIZES = ((321, 481), (1024, 1024))
STRIP, WHOLE = strips.ON_PROCESSOR, 1 << 40


def evaluate(name: str, height: int, width: int, limit: int) -> None:
    """h and ∇h, in strips of `limit` numbers."""
    torch.manual_seed(0)
    energy = regularizers.make(name).requires_grad_(False)
    assert isinstance(energy, Energy)
    strips.ON_PROCESSOR = limit
    with torch.no_grad():
        energy.value_and_grad(torch.rand(1, 1, height, width), torch.tensor(0.1))


def peak() -> int:
    """The most memory that the process has had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory(name: str, height: int, width: int, limit: int) -> int:
    """What one evaluation adds to the peak of a new process, in KiB."""
    command = [sys.executable, "-m", "benchmarks.ridges", "--memory", name, str(height), str(width), str(limit)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run(runs: int) -> list[Row]:
    """Time and memory over those of all responses at once."""
    # First, while this process is small: a new process begins with the peak of the one that started it.
    shares = {name: memory(name, *SIZES[-1], STRIP) / memory(name, *SIZES[-1], WHOLE) for name in NAMES}
    rows = [counted("ridges", f"memory, {name}, one megapixel", share, "", 0.5) for name, share in shares.items()]
    for name in NAMES:
        for height, width in SIZES:
            ways = [partial(evaluate, name, height, width, limit) for limit in (WHOLE, STRIP)]
            (ratios,) = paired(*ways, runs=runs)
            rows.append(summarized("ridges", f"time, {name}, {height}x{width}", ratios, "", 1.0))
    return rows


if __name__ == "__main__":
    if "--memory" in sys.argv:
        name, *numbers = sys.argv[sys.argv.index("--memory") + 1 :]
        height, width, limit = map(int, numbers)
        evaluate(name, 16, 16, limit)
        before = peak()
        evaluate(name, height, width, limit)
        print(peak() - before)
    else:
        main(run, __doc__, runs=5)
