"""Where and how exactly to compute: the device, and the precision of the rough part of a solve."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from elder.errors import UserError

PRECISIONS = ("float32", "tf32", "bf16")
T = TypeVar("T")
# Images that an accelerator validates at once.
TOGETHER = 8
# Pixels, counted in one channel, that a processor evaluates at a time. A layer of 64 channels then takes 8 MB. glibc
# maps blocks above 32 MB from the system, clears them and returns them at every use, which is slow.
CHUNK = 1 << 15


@dataclass(frozen=True)
class Compute:
    """Settings that change the time of a result, and the result itself no further than rounding does.

    A device of CUDA also turns off TensorFloat-32 in this process, which PyTorch allows in convolutions by default:
    gradients and products with Jacobians then have all bits of float32. Only `autocast` allows it, for its block.

    device: cpu, cuda, cuda:1, mps, or auto, the accelerator if there is one. precision: float32; or tf32 or bf16 for
    the rough part of every solve, which float32 then polishes, and for pre-training. micro_batch: images of a batch
    that training computes at once, which bounds its memory; 0: all of them. validation_batch: images that validation
    and tuning solve for at once; 0: one on a processor, which is no slower, and 8 on an accelerator. processes: those
    of this machine that share a training, with a GPU each if the device is cuda.
    Raises `UserError` for an unknown precision, a negative number of images, a device that can't be used, or more
    processes than GPUs.
    """

    device: str = "cpu"
    precision: str = "float32"
    micro_batch: int = 0
    validation_batch: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UserError(f"precision={self.precision!r} must be one of {', '.join(PRECISIONS)}")
        if self.micro_batch < 0:
            raise UserError(f"micro_batch={self.micro_batch} must be a number of images, or 0 for the whole batch")
        if self.validation_batch < 0:
            raise UserError(
                f"validation_batch={self.validation_batch} must be a number of images, or 0 for the default"
            )
        if self.device == "auto":
            found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
            object.__setattr__(self, "device", str(found))
        try:
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"device={self.device!r} can't be used ({reason}): set cpu or auto") from None
        if self.processes < 1:
            raise UserError(f"processes={self.processes} must be at least 1")
        if self.device.startswith("cuda") and self.processes > torch.cuda.device_count():
            raise UserError(
                f"processes={self.processes}: this machine has {torch.cuda.device_count()} GPUs, and each needs one"
            )
        if self.device.startswith("cuda"):
            for switch in _switches():
                switch.allow_tf32 = False
        if self.validation_batch == 0:
            object.__setattr__(self, "validation_batch", 1 if self.device == "cpu" else TOGETHER)


@contextmanager
def autocast(precision: str, device: torch.device) -> Iterator[None]:
    """Convolutions in the lower precision; float32 means all of its bits, on every device."""
    with tensor_float(precision), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield


@contextmanager
def tensor_float(precision: str) -> Iterator[None]:
    """TensorFloat-32 allowed on CUDA, unless the precision is float32.

    Also for the gradient of what `autocast` of that precision has computed, which is to be taken outside its block.
    """
    switches = _switches()
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = precision != "float32"
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


def _switches() -> list[Any]:
    """Where PyTorch keeps whether TensorFloat-32 is allowed: in products of matrices, and in convolutions."""
    return [torch.backends.cuda.matmul, torch.backends.cudnn]


def chunks(x: Tensor) -> tuple[Tensor, ...]:
    """The pictures (b, c, h, w) in the groups to evaluate one after another, in order.

    Where nothing is recorded, on a processor, that is faster than all at once, and the memory of a network's layers
    does not grow with b. Else they are one group.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return (x,)
    return x.split(max(1, CHUNK // x[0, 0].numel())) if len(x) > 1 else (x,)


def to_device(record: T, device: torch.device | str) -> T:
    """A record with every tensor among its attributes on the device."""
    placed = copy.copy(record)
    for name, value in vars(record).items():
        if isinstance(value, Tensor):
            object.__setattr__(placed, name, value.to(device))
    return placed
