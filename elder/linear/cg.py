"""Conjugate gradients."""

from __future__ import annotations

from elder.linear.base import Map
from elder.shapes import Images
from elder.tensors import dot, per_image


def conjugate_gradients(H: Map, b: Images, start: Images, *, tol: float, max_steps: int) -> Images:
    """v with ‖b − H v‖ <= tol ‖b‖ for each image, by the conjugate gradient method (Hestenes & Stiefel 1952).

    H: (b, c, h, w) -> (b, c, h, w), symmetric and positive definite on each image alone; start: an initial guess of v.
    Raises `ArithmeticError` if `max_steps` products with H do not reach `tol`.
    """
    v = start
    r = b - H(v)
    p, rr = r, dot(r, r)
    goal = tol**2 * dot(b, b)
    for _ in range(max_steps):
        if bool((rr <= goal).all()):
            return v
        q = H(p)
        live = rr > goal
        alpha = per_image((rr / dot(p, q)).where(live, rr.new_zeros(())), v)
        v, r = v + alpha * p, r - alpha * q
        rr, old = dot(r, r), rr
        beta = per_image((rr / old).where(live, rr.new_zeros(())), v)
        p = r + beta * p
    if bool((rr <= goal).all()):
        return v
    raise ArithmeticError(
        f"conjugate gradients left a relative residual of {float((rr / dot(b, b)).max()) ** 0.5:.1e} after "
        f"{max_steps} steps, above tol={tol:g}: raise max_steps, or use a smaller step"
    )
