"""The preconditioned fixed-point iteration with Anderson mixing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from elder.linear.base import IterativeSolver, LinearSolution, Map, solution
from elder.shapes import Images
from elder.tensors import mixing_weights, norm, per_image


@dataclass(frozen=True)
class AndersonFixedPoint(IterativeSolver):
    """`FixedPoint` with Anderson mixing over the last `depth` points (Gilton et al. 2021); the best point is kept."""

    contraction: ClassVar[bool] = True

    depth: int = 6

    @torch.no_grad()
    def __call__(self, H: Map, b: Images, precondition: Map) -> LinearSolution:
        """Solve H v = b for each image; see `LinearSolver`."""
        v, products = precondition(b), 0
        best, least = v, torch.full((len(b),), torch.inf, dtype=torch.float64, device=b.device)
        points: list[Images] = []
        moves: list[Images] = []
        while True:
            r = b - H(v)
            products += 1
            left = norm(r)
            best = torch.where(per_image(left < least, v) > 0, v, best)
            least = torch.minimum(left, least)
            live = least > self.tol * norm(b)
            if products == self.max_steps or not bool(live.any()):
                return solution(best, least, b, products, self.tol)
            points, moves = [*points, v][-self.depth :], [*moves, precondition(r)][-self.depth :]
            v = torch.where(per_image(live, v) > 0, _mix(points, moves), v)


def _mix(points: list[Images], moves: list[Images]) -> Images:
    """Σ αᵢ (pᵢ + mᵢ) with α minimizing ‖Σ αᵢ mᵢ‖ and Σ αᵢ = 1, image by image."""
    latest = points[-1] + moves[-1]
    if len(points) == 1:
        return latest
    newest = moves[-1].flatten(1)
    differences = torch.stack([m.flatten(1) - newest for m in moves[:-1]], 1)
    alpha = mixing_weights(differences, newest, 1e-10)
    mixed = latest
    for k, (p, m) in enumerate(zip(points[:-1], moves[:-1], strict=True)):
        mixed = mixed + per_image(alpha[:, k, 0], latest) * (p + m - latest)
    return mixed
