"""The generalized minimum residual method."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from elder.linear.base import IterativeSolver, LinearSolution, Map, solution
from elder.shapes import Images
from elder.tensors import dot, norm, only, per_image


@dataclass(frozen=True)
class GMRES(IterativeSolver):
    """Generalized minimum residual for any H (Saad & Schultz 1986), without restarts.

    Flexible (Saad 1993): the preconditioner may be inexact, as one by conjugate gradients is. Keeps two pictures a
    step: memory grows with `max_steps`. An image that has converged keeps its v, and its later directions are zero.
    """

    @torch.no_grad()
    def __call__(self, H: Map, b: Images, precondition: Map) -> LinearSolution:
        """Solve H v = b for each image; see `LinearSolver`."""
        scale, tiny = norm(b), torch.finfo(torch.float64).tiny
        live = scale.isfinite() & (scale > 0)
        basis, directions = [only(live, b / per_image(scale.clamp(min=tiny), b))], []
        hessenberg = b.new_zeros(len(b), self.max_steps + 1, self.max_steps, dtype=torch.float64)
        weights = hessenberg.new_zeros(len(b), self.max_steps, 1)
        left = scale.where(scale.isfinite(), torch.inf)
        for k in range(self.max_steps):
            if not bool(live.any()):
                break
            directions.append(precondition(basis[k]))
            w = H(directions[k])
            # Twice is enough for orthogonality in this precision (Giraud et al. 2005).
            for _ in range(2):
                for j, q in enumerate(basis):
                    share = dot(q, w)
                    hessenberg[:, j, k] += share
                    w = w - per_image(share, w) * q
            length = norm(w)
            # An image whose products overflow must not end the solves of the others.
            broken = live & ~(length + hessenberg[:, : k + 1, k].sum(1)).isfinite()
            left, live = left.masked_fill(broken, torch.inf), live & ~broken
            hessenberg[:, k + 1, k] = length
            basis.append(only(live, w / per_image(length.clamp(min=tiny), w)))
            corner = hessenberg[live, : k + 2, : k + 1]
            target = corner.new_zeros(len(corner), k + 2, 1)
            target[:, 0, 0] = scale[live]
            weights[live, : k + 1] = torch.linalg.pinv(corner) @ target
            left[live] = (corner @ weights[live, : k + 1] - target).norm(dim=(1, 2))
            live = live & (left > self.tol * scale)
        v = torch.zeros_like(b)
        for j, z in enumerate(directions):
            v = v + per_image(weights[:, j, 0], b) * z
        # H maps the directions to the basis, which is orthonormal: what the small system leaves is what H v leaves.
        return solution(v, left, b, len(directions), self.tol)
