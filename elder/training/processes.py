"""How a batch is divided: over processes, all of which take the same step, and in each of them into parts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, distributed, nn

from elder.backend import Compute
from elder.errors import UserError


@dataclass(frozen=True)
class Processes:
    """The processes that train one model, this one among them. Made by `joined`; by default there is one.

    Every process draws the whole batch from the same generator and works on its share, so that a training does not
    depend on their number, except for rounding. With one process, nothing is sent, and no value is changed. The parts
    of a share are computed one after another, and their gradients added.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"  # where values are that are sent
    micro_batch: int = 0  # images of a part at most; 0: a share is one part

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, logs and reports."""
        return self.rank == 0

    def check_batch(self, batch: int) -> None:
        """Raise `UserError` for a batch that leaves a process without an image."""
        if batch < self.count:
            raise UserError(f"batch={batch}: {self.count} processes need an image each; start fewer, or raise batch")

    def share(self, total: int) -> slice:
        """This process's part of `total` images: shares are neighbors, and differ by one at most."""
        return slice(self.rank * total // self.count, (self.rank + 1) * total // self.count)

    def parts(self, total: int) -> list[slice]:
        """This process's share of `total` images in parts of `micro_batch` images at most, which differ by one."""
        share = self.share(total)
        size = share.stop - share.start
        count = -(-size // self.micro_batch) if self.micro_batch else 1
        within = [replace(self, rank=k, count=count).share(size) for k in range(count)]
        return [slice(share.start + part.start, share.start + part.stop) for part in within]

    def gather(self, values: Tensor, total: int) -> Tensor:
        """The values of all images, (total, ...) float64, from those of this process's share. Every process calls it.

        With one process, they are `values`.
        """
        if self.count == 1:
            return values
        whole = torch.zeros((total, *values.shape[1:]), dtype=torch.float64, device=self.device)
        whole[self.share(total)] = values.to(whole)
        distributed.all_reduce(whole)
        return whole

    def average_gradients(self, parameters: Iterable[nn.Parameter], weight: float) -> None:
        """Put the `average` of each gradient in its place.

        weight: the share of the batch that this process has, if its loss is a mean over its images.
        """
        if self.count == 1:
            return
        trained = list(parameters)
        # A parameter that this process's images did not reach has no gradient.
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        for p, gradient in zip(trained, self.average(gradients, weight), strict=True):
            p.grad = gradient

    def average(self, gradients: Sequence[Tensor], weight: float) -> list[Tensor]:
        """Σ weight · gradient over the processes, of each gradient: one all-reduce, in float64.

        The sum is the same in every process, bit by bit. One that is not finite makes that of all so.
        """
        if self.count == 1:
            return list(gradients)
        flat = weight * torch.cat([gradient.flatten().double() for gradient in gradients])
        distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        return [part.view_as(old).to(old.dtype) for part, old in zip(parts, gradients, strict=True)]

    def from_first(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """The state of a training that the first process has read, in every process; others give `None`.

        So the processes need no common file system.
        """
        if self.count == 1:
            return state
        written = BytesIO()
        torch.save(state, written)
        size = torch.tensor(written.tell(), device=self.device)
        distributed.broadcast(size, src=0)
        sent = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.first:
            sent.copy_(torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8))
        distributed.broadcast(sent, src=0)
        return torch.load(BytesIO(sent.cpu().numpy().tobytes()), map_location="cpu", weights_only=True)


ALONE = Processes()


@contextmanager
def joined(compute: Compute) -> Iterator[tuple[Processes, Compute]]:
    """The processes that torchrun started, and where this one computes; one process if it was started otherwise.

    Values are sent by NCCL between GPUs, and by gloo else. `cuda` becomes a GPU of this process's own.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(micro_batch=compute.micro_batch), compute
        return
    if compute.device.startswith("cuda"):
        compute = replace(compute, device=f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(compute.device)
    distributed.init_process_group("nccl" if compute.device.startswith("cuda") else "gloo")
    try:
        device = compute.device if compute.device.startswith("cuda") else "cpu"
        yield Processes(distributed.get_rank(), count, device, compute.micro_batch), compute
    finally:
        distributed.destroy_process_group()
