"""The only loop: over any step, with per-image stopping and an honest status."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from elder.backend import to_device
from elder.objective import Equilibrium
from elder.shapes import Counts, Flags, Images, OneOrEach, PerImage
from elder.solvers.iterate import Iterate, M
from elder.solvers.status import Status

P = TypeVar("P", bound=Equilibrium)
P_contra = TypeVar("P_contra", bound=Equilibrium, contravariant=True)


@runtime_checkable
class Method(Protocol[P_contra, M]):
    """A pure step over a batch of iterates: of any `Equilibrium`, or one that needs the energy of an `Objective`."""

    def start(self, problem: P_contra, x: Images, step: OneOrEach, /) -> Iterate[M]:
        """The iterate at x, (b, c, h, w), with the proposal of the first step τ."""
        ...

    def advance(self, problem: P_contra, s: Iterate[M], /) -> Iterate[M]:
        """The next iterate: one step of the method for every image."""
        ...


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solve returns, never passed off as converged when it is not."""

    x: Images
    status: tuple[Status, ...]  # one an image
    steps: Counts  # accepted steps
    residual: PerImage  # ‖proposal − x‖ / ‖x‖ at x
    step: PerImage  # the last accepted τ
    evaluations: Counts  # network evaluations
    # f along the solve, from the start to the most steps taken; NaN after an image has stopped. None without an energy.
    energies: Float64[Tensor, "b n"] | None

    @property
    def energy(self) -> PerImage | None:
        """f(x) at the end, (b,); None where the regularizer is no energy."""
        return None if self.energies is None else self.energies.gather(1, self.steps.view(-1, 1)).flatten()

    def to(self, device: torch.device | str) -> Solution:
        """The solution with its tensors on the device."""
        return to_device(self, device)

    @property
    def succeeded(self) -> Flags:
        """(b,) bool: the solve reached a fixed point, to the tolerance or to the precision of the arithmetic."""
        return torch.tensor([status.succeeded for status in self.status], device=self.x.device)

    @property
    def monotone(self) -> Flags | None:
        """(b,) bool: the energy rose at no accepted step; None where the regularizer is no energy."""
        return None if self.energies is None else ~(self.energies.diff(dim=1) > 0).any(1)


def iterates(method: Method[P, M], problem: P, x0: Images, step: OneOrEach) -> Iterator[Iterate[M]]:
    """The iterates of the method from x0, without end and without stopping rule; for curves."""
    s = method.start(problem, x0, step)
    while True:
        yield s
        s = method.advance(problem, s)


@torch.no_grad()
def solve(
    method: Method[P, M],
    problem: P,
    x0: Images,
    step: OneOrEach,
    *,
    tol: float = 1e-4,
    max_steps: int = 300,
    time_limit: float = math.inf,
) -> Solution:
    """Iterate from x0, (b, c, h, w), until ‖proposal − x‖ <= tol ‖x‖, image by image.

    Images that have stopped leave the batch and cost nothing more: a batch gives the results of its images one by
    one. step τ: scalar or (b,). time_limit: in seconds; the clock is read before each step, and images that have not
    stopped then do so as `TIME_LIMIT`. Raises `ValueError` for tol <= 0 or max_steps < 1.
    """
    if tol <= 0 or max_steps < 1:
        raise ValueError(f"solve needs tol > 0 and max_steps >= 1; got tol={tol}, max_steps={max_steps}")
    deadline = monotonic() + time_limit
    active = torch.arange(len(x0), device=x0.device)
    s = method.start(problem, x0, step)
    final, status = s, [Status.MAX_STEPS] * len(x0)
    steps = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
    energies = [] if s.energy is None else [s.energy]
    for count in range(max_steps + 1):
        spent = Status.MAX_STEPS if count == max_steps else Status.TIME_LIMIT if monotonic() >= deadline else None
        ended = {i: why for i, found in enumerate(stops(s, tol)) if (why := found or spent) is not None}
        if ended:
            index = torch.tensor(list(ended), device=x0.device)
            final = final.put(active[index], s.select(index))
            steps[active[index]] = count - s.stalled[index].long()
            for i, why in ended.items():
                status[int(active[i])] = why
            keep = torch.tensor([i for i in range(len(active)) if i not in ended], device=x0.device, dtype=torch.long)
            if not len(keep):
                break
            active, s, problem = active[keep], s.select(keep), problem.select(keep)
        s = method.advance(problem, s)
        if s.energy is not None:
            energies.append(torch.full_like(energies[0], torch.nan).index_copy(0, active, s.energy))
    path = torch.stack(energies, 1) if energies else None
    return Solution(final.x, tuple(status), steps, final.residual, final.step, final.evaluations, path)


def stops(s: Iterate[M], tol: float) -> list[Status | None]:
    """Why each image stops here, or `None` for an image that continues."""
    finite = (s.residual if s.energy is None else s.residual + s.energy).isfinite()
    # Near a minimum the energy rises by the square of the distance, and a rise of its rounding can't be seen.
    near = torch.finfo(s.x.dtype).eps ** 0.5
    rows = zip(finite.tolist(), s.residual.tolist(), s.stalled.tolist(), strict=True)
    return [_status(finite, residual, stalled, tol, near) for finite, residual, stalled in rows]


def _status(finite: bool, residual: float, stalled: bool, tol: float, near: float) -> Status | None:
    if not finite:
        return Status.NOT_FINITE
    if residual <= tol:
        return Status.CONVERGED
    if stalled:
        return Status.PRECISION if residual <= near else Status.STALLED
    return None
