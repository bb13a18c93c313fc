"""Conjugate gradients."""

from __future__ import annotations

import torch

from elder.linear.base import Map
from elder.shapes import Images
from elder.tensors import dot, per_image


def conjugate_gradients(
    H: Map, b: Images, start: Images | None = None, *, tol: float, max_steps: int, precondition: Map | None = None
) -> Images:
    """v with ‖b − H v‖ <= tol ‖b‖ for each image, by the conjugate gradient method (Hestenes & Stiefel 1952).

    H: (b, c, h, w) -> (b, c, h, w), symmetric and positive definite on each image alone. start: an initial guess of v;
    if `None`, zero, which costs no product with H. precondition: a map P of the same kind as H, near H⁻¹; if `None`,
    the identity. Raises `ArithmeticError` if `max_steps` products with H do not reach `tol`.
    """
    v, r = (torch.zeros_like(b), b) if start is None else (start, b - H(start))
    rr, goal = dot(r, r), tol**2 * dot(b, b)
    p, rz = torch.zeros_like(r), torch.ones_like(rr)
    for _ in range(max_steps):
        if bool((rr <= goal).all()):
            return v
        z = r if precondition is None else precondition(r)
        live = rr > goal
        rz, old = rr if precondition is None else dot(r, z), rz
        beta = per_image((rz / old).where(live, rr.new_zeros(())), v)
        p = z + beta * p
        q = H(p)
        alpha = per_image((rz / dot(p, q)).where(live, rr.new_zeros(())), v)
        v, r = v + alpha * p, r - alpha * q
        rr = dot(r, r)
    if bool((rr <= goal).all()):
        return v
    raise ArithmeticError(
        f"conjugate gradients left a relative residual of {float((rr / dot(b, b)).max()) ** 0.5:.1e} after "
        f"{max_steps} steps, above tol={tol:g}: raise max_steps, or use a smaller step"
    )
