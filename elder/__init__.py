"""Learned explicit regularisers for imaging inverse problems (ELDER; Zou, Liu, Wohlberg & Kamilov 2023).

model = elder.load("models/csmri-least_squares")
x, info = model.reconstruct(y, mask=mask)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elder.errors import UserError

if TYPE_CHECKING:
    from elder.model import Info, Model, load

__all__ = ["Info", "Model", "UserError", "load"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: a pipeline stage depends on the files that it imports, and no more.
    if name in ("Info", "Model", "load"):
        from elder import model

        return getattr(model, name)
    raise AttributeError(f"module 'elder' has no attribute {name!r}")
