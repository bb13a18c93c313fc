"""How well a model reconstructs a set of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from elder.evaluation.quality import judged, psnr
from elder.model.model import Model
from elder.problems.samples import Sample, batches
from elder.training.processes import ALONE, Processes

# The share of solves that a model must bring to a fixed point, and the dB that a missing share of one is charged.
ENOUGH, CHARGE = 0.95, 20.0


@dataclass(frozen=True)
class Score:
    """What a model does on validation, within the steps that its evaluation takes."""

    psnr: float  # mean PSNR in dB where the solves end, over the images of `judged`
    converged: float  # share of the solves that reached a fixed point

    @property
    def merit(self) -> float:
        """PSNR − 20 dB · max(0, 0.95 − share): beyond the first twentieth, each twentieth of lost solves costs 1 dB.

        Where an iteration is cut off says little of other images and other numbers of steps. Among many images a
        single solve that ends late costs nothing. Among few it costs much: one of three, 5.7 dB.
        """
        return self.psnr - CHARGE * max(0.0, ENOUGH - self.converged)

    def beats(self, other: Score, by: float = 0.0) -> bool:
        """Whether this is the better one, by more than `by` dB of merit."""
        return self.merit > other.merit + by


def validate(model: Model, samples: Sequence[Sample], processes: Processes = ALONE) -> Score:
    """The score on the samples, of which each process solves for its share, `model.validation_batch` images at a time.

    No more than these are in memory: `samples` may read each image where it is asked for.
    """
    found: list[tuple[float, float, float]] = []
    share = (samples[i] for i in range(len(samples))[processes.share(len(samples))])
    for operator, y, truth in batches(model.problem, share, model.validation_batch):
        solution = model.solve(operator, y)
        pictures = solution.x, model.problem.initial(operator, y)
        quality, guesses = (psnr(picture.to(truth.device), truth).tolist() for picture in pictures)
        found += zip(quality, guesses, solution.succeeded.double().tolist(), strict=True)
    whole = processes.gather(torch.tensor(found, dtype=torch.float64).view(-1, 3), len(samples))
    quality, guesses, converged = whole.T.tolist()
    return Score(fmean(judged(quality, guesses)), fmean(converged))
