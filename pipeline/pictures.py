"""Pictures for reports: reconstructions side by side, and convergence curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from elder import files

Captioned = tuple[np.ndarray, str]


def panel(path: Path, columns: Mapping[str, Sequence[Captioned]]) -> None:
    """One column a method, one row an image, each picture with its caption."""
    rows = len(next(iter(columns.values())))
    figure, axes = plt.subplots(rows, len(columns), figsize=(2.2 * len(columns), 2.4 * rows), squeeze=False)
    for axis_column, (title, pictures) in zip(axes.T, columns.items(), strict=True):
        axis_column[0].set_title(title, fontsize=11)
        for axis, (picture, caption) in zip(axis_column, pictures, strict=True):
            axis.imshow(picture.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xlabel(caption, fontsize=10)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
    _save(figure, path)


def curves(path: Path, methods: Mapping[str, Sequence[Mapping[str, float | None]]], image: str) -> None:
    """Energy above its minimum, where there is one, fixed-point residual and PSNR against steps."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.4))
    for name, rows in methods.items():
        steps = [row["step"] for row in rows]
        values = [row["energy"] for row in rows]
        if None not in values:
            energy = np.array(values, dtype=float)
            left.semilogy(steps[:-1], (energy[:-1] - energy.min()).clip(min=1e-12) / abs(energy.min()), label=name)
        middle.semilogy(steps, [row["residual"] for row in rows], label=name)
        right.plot(steps, [row["psnr"] for row in rows], label=name)
    left.set(xlabel="step", ylabel="(f − min f) / |min f|", title=f"energy, {image}")
    middle.set(xlabel="step", ylabel="‖p − x‖ / ‖x‖", title="fixed-point residual")
    right.set(xlabel="step", ylabel="PSNR (dB)", title="quality")
    right.legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    with files.replacing(path) as temporary:
        # No creation date: the same pictures make the same file.
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
    plt.close(figure)
