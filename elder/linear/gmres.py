"""The generalized minimum residual method."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from elder.linear.base import IterativeSolver, LinearSolution, Map, solution
from elder.shapes import Images
from elder.tensors import dot, norm, per_image


@dataclass(frozen=True)
class GMRES(IterativeSolver):
    """Generalized minimum residual for any H (Saad & Schultz 1986), without restarts.

    Flexible (Saad 1993): the preconditioner may be inexact, as one by conjugate gradients is. Keeps two pictures a
    step: memory grows with `max_steps`.
    """

    @torch.no_grad()
    def __call__(self, H: Map, b: Images, precondition: Map) -> LinearSolution:
        """Solve H v = b for each image; see `LinearSolver`."""
        scale = norm(b)
        safe = scale.clamp(min=torch.finfo(torch.float64).tiny)
        basis, directions, left = [b / per_image(safe, b)], [], scale
        hessenberg = b.new_zeros(len(b), self.max_steps + 1, self.max_steps, dtype=torch.float64)
        weights = hessenberg.new_zeros(len(b), self.max_steps, 1)
        broken = ~scale.isfinite()
        for k in range(self.max_steps):
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
            broken |= ~(length + hessenberg[:, : k + 1, k].sum(1)).isfinite()
            w, length = torch.where(per_image(broken, w) > 0, 0.0, w), length.masked_fill(broken, 0.0)
            hessenberg[broken] = 0.0
            hessenberg[:, k + 1, k] = length
            basis.append(w / per_image(length.clamp(min=torch.finfo(torch.float64).tiny), w))
            corner = hessenberg[:, : k + 2, : k + 1]
            target = hessenberg.new_zeros(len(b), k + 2, 1)
            target[:, 0, 0] = scale
            weights[:, : k + 1] = torch.linalg.pinv(corner) @ target
            left = (corner @ weights[:, : k + 1] - target).norm(dim=(1, 2))
            if bool(((left <= self.tol * scale) | broken).all()):
                break
        left = left.masked_fill(broken, torch.inf)
        v = torch.zeros_like(b)
        for j, z in enumerate(directions):
            v = v + per_image(weights[:, j, 0], b) * z
        # H maps the directions to the basis, which is orthonormal: what the small system leaves is what H v leaves.
        return solution(v, left, b, len(directions), self.tol)
