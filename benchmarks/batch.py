"""A batch of 16 pictures against the same one by one: `python -m benchmarks.batch`.

CS-MRI at 20 %, 128x128, DnCNN 64x12, to a residual of 1e-4. Pictures that converge early leave the batch: the network
sees as many pictures as one by one, and not 16 times the longest solve.
"""

from __future__ import annotations

import torch

from benchmarks.common import TEST, TRAINING, Row, counted, main, model, paired, pictures, summarized
from elder.regularizers.base import Energy
from elder.shapes import Images, OneOrEach, PerImage
from elder.solvers import fixed_point

TITLE, SIZE = "DnCNN 64x12", (128, 128)


class Counting(Energy):
    """An energy that counts the pictures it evaluates."""

    def __init__(self, inner: Energy) -> None:
        super().__init__()
        self.inner = inner
        self.seen = 0

    def value(self, x: Images, sigma: OneOrEach) -> PerImage:
        """As the inner energy's."""
        return self.inner.value(x, sigma)

    def value_and_grad(self, x: Images, sigma: OneOrEach) -> tuple[PerImage, Images]:
        """As the inner energy's; the pictures are counted."""
        self.seen += len(x)
        return self.inner.value_and_grad(x, sigma)


def run(runs: int) -> list[Row]:
    """Cost a picture, and pictures evaluated."""
    chosen = model(TITLE, "csmri", ratio=0.2)
    upright = pictures([*TEST, *TRAINING[:6]], SIZE)
    truth = torch.cat([*upright, *(x.rot90(1, (-2, -1)) for x in upright[:6])])
    generator = torch.Generator().manual_seed(0)
    operator, y = chosen.problem.simulate(truth, generator)
    assert isinstance(chosen.regularizer, Energy)
    counting = Counting(chosen.regularizer)
    whole = chosen.objective(operator, y)
    whole = type(whole)(whole.fidelity, counting, whole.lambda_reg, whole.sigma)
    start, step = chosen.problem.initial(operator, y), torch.tensor(chosen.hyperparameters.step)

    def together():
        return fixed_point(whole, start, step)

    def singly() -> None:
        for i in range(len(truth)):
            index = torch.tensor([i])
            fixed_point(whole.select(index), start[index], step)

    solution = together()
    seen, counting.seen = counting.seen, 0
    singly()
    alone, longest = counting.seen, int(solution.evaluations.max())
    (ratios,) = paired(singly, together, runs=runs)
    count = len(truth)
    return [
        summarized("batch", f"time of a batch of {count} over one by one", ratios, ""),
        counted("batch", "pictures evaluated, over one by one", seen / alone, "", 1.0),
        counted("batch", f"pictures evaluated, over {count} times the longest", seen / (count * longest), ""),
    ]


if __name__ == "__main__":
    main(run, __doc__, runs=5)
