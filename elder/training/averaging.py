"""The exponential moving average of a training's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def moving_average(module: nn.Module, decay: float) -> AveragedModel:
    """θ̄ ← d θ̄ + (1 − d) θ at each `update_parameters`, beginning with a copy of the module's θ.

    After n updates d = min(decay, (1 + n) / (10 + n)), so that short trainings do not end at where they began.
    decay 0: θ̄ is θ.
    """

    def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        n = int(count)
        return torch.lerp(averaged, current.to(averaged), 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(module, avg_fn=average)
