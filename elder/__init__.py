"""Learned explicit regularizers for imaging inverse problems (ELDER; Zou, Liu, Wohlberg & Kamilov 2023).

model = elder.load("models/csmri-least_squares")
x, info = model.reconstruct(y, mask=mask)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elder.errors import UserError

if TYPE_CHECKING:
    from elder.model.address import load
    from elder.model.model import Info, Model

__all__ = ["Info", "Model", "UserError", "load"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `import elder` stays quick.
    if name == "load":
        from elder.model.address import load

        return load
    if name in ("Info", "Model"):
        from elder.model import model

        return getattr(model, name)
    raise AttributeError(f"module 'elder' has no attribute {name!r}")
