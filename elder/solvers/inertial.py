"""Inertial proximal gradient descent, restarted when the energy would rise."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from elder.objective import Objective
from elder.shapes import Images, Index, OneOrEach, PerImage
from elder.solvers.iterate import Iterate
from elder.solvers.line_search import LineSearch
from elder.tensors import per_image


@dataclass(frozen=True, eq=False)
class Momentum:
    """What the last step leaves: its proximal point and Nesterov's counter."""

    last: Images
    t: PerImage

    def select(self, index: Index) -> Momentum:
        """The memory of the images `index` of the batch."""
        return Momentum(self.last[index], self.t[index])


@dataclass(frozen=True)
class Inertial:
    """z = p + β(p − p_last), with p the proximal step and β from Nesterov's sequence t⁺ = (1 + √(1 + 4t²))/2.

    z is accepted only if the energy falls as much as the sufficient-decrease condition requires of p. Otherwise p is
    accepted, and the momentum is reset (O'Donoghue & Candès 2015). So the guarantee of `ProximalGradient` holds.

    Reference: Beck & Teboulle, "A fast iterative shrinkage-thresholding algorithm", SIAM J. Imaging Sci. 2 (2009).
    """

    line_search: LineSearch = field(default_factory=LineSearch)

    def start(self, objective: Objective, x: Images, step: OneOrEach) -> Iterate[Momentum]:
        """The first iterate, with an empty memory; see `Method`."""
        s = self.line_search.start(objective, x, step)
        return s.with_memory(Momentum(s.x, torch.ones_like(s.step)))

    def advance(self, objective: Objective, s: Iterate[Momentum]) -> Iterate[Momentum]:
        """One step of the method; see `Method`."""
        memory = s.memory
        t = (1 + (1 + 4 * memory.t**2).sqrt()) / 2
        beta = per_image((memory.t - 1) / t, s.x)
        candidate = s.proposal + beta * (s.proposal - memory.last)
        new = self.line_search.descend(objective, s, candidate)
        kept = (new.x == candidate).flatten(1).all(1)
        return new.with_memory(Momentum(s.proposal, torch.where(kept, t, 1.0)))
