"""Pictures for the report: reconstructions side by side with their errors, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from elder import io

# The largest error that a map shows; beyond it all is white.
ERROR = 0.15


def panel(path: Path, truths: Sequence[np.ndarray], methods: Mapping[str, Sequence[tuple[np.ndarray, str]]]) -> None:
    """For each image a row of pictures with their captions and a zoomed inset, and below it a row of error maps."""
    count = len(methods) + 1
    figure, axes = plt.subplots(2 * len(truths), count, figsize=(2.1 * count, 4.35 * len(truths)), squeeze=False)
    for row, truth in enumerate(truths):
        window = busiest(truth)
        show(axes[2 * row, 0], truth, window, "")
        axes[2 * row + 1, 0].set_axis_off()
        for column, (title, pictures) in enumerate(methods.items(), start=1):
            picture, caption = pictures[row]
            show(axes[2 * row, column], picture, window, caption)
            error = np.abs(picture.clip(0, 1) - truth)
            axes[2 * row + 1, column].imshow(
                error if error.ndim == 2 else error.mean(-1), "inferno", vmin=0, vmax=ERROR
            )
            bare(axes[2 * row + 1, column])
            axes[0, column].set_title(title, fontsize=10)
    axes[0, 0].set_title("ground truth", fontsize=10)
    axes[1, 0].text(0.5, 0.5, f"errors,\n0 to {ERROR}", ha="center", va="center", transform=axes[1, 0].transAxes)
    _save(figure, path)


def show(axis: Axes, picture: np.ndarray, window: tuple[slice, slice], caption: str) -> None:
    """The picture with the window marked, and enlarged in its lower right corner."""
    options: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    axis.imshow(picture.clip(0, 1), **options)
    rows, columns = window
    size = rows.stop - rows.start
    axis.add_patch(Rectangle((columns.start, rows.start), size, size, fill=False, edgecolor="yellow", linewidth=0.8))
    inset = axis.inset_axes((0.58, 0.0, 0.42, 0.42))
    inset.imshow(picture[window].clip(0, 1), **options)
    inset.set(xticks=[], yticks=[])
    plt.setp(inset.spines.values(), color="yellow", linewidth=0.8)
    axis.set_xlabel(caption, fontsize=9)
    bare(axis)


def busiest(truth: np.ndarray) -> tuple[slice, slice]:
    """The window, a fifth of the picture wide and in its upper left part, with the most contrast."""
    size = min(truth.shape[:2]) // 5
    tops = range(0, int(0.55 * truth.shape[0]), size // 2)
    lefts = range(0, int(0.55 * truth.shape[1]), size // 2)
    windows = [(slice(t, t + size), slice(left, left + size)) for t in tops for left in lefts]
    return max(windows, key=lambda window: truth[window].std())


def bare(axis: Axes) -> None:
    """Without ticks and frame."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def convergence(path: Path, solves: Mapping[tuple[str, str], Sequence[Mapping[str, str]]]) -> None:
    """Energy above its least value, fixed-point residual and PSNR, against steps.

    solves: the rows of a solve, by regularizer and phase. The phase `pretrained` is drawn dashed, in the color of the
    regularizer.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 3.6))
    colors: dict[str, str] = {}
    for (regularizer, phase), rows in solves.items():
        early = phase == "pretrained"
        steps = [int(row["step"]) for row in rows]
        style = {
            "label": f"{regularizer}, before" if early else regularizer,
            "linestyle": "--" if early else "-",
            "color": colors.setdefault(regularizer, f"C{len(colors)}"),
        }
        if all(row["energy"] for row in rows):
            energy = np.array([float(row["energy"]) for row in rows])
            left.semilogy(steps[:-1], (energy[:-1] - energy.min()).clip(min=1e-12) / abs(energy.min()), **style)
        # An empty cell is a value that was not finite.
        middle.semilogy(steps, [float(row["residual"] or "nan") for row in rows], **style)
        right.plot(steps, [float(row["psnr"]) for row in rows], **style)
    left.set(xlabel="step", ylabel="(f − min f) / |min f|", title="energy")
    middle.set(xlabel="step", ylabel="‖p − x‖ / ‖x‖", title="fixed-point residual")
    right.set(xlabel="step", ylabel="PSNR (dB)", title="quality")
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    _save(figure, path)


def training(path: Path, curves: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    """PSNR and converged solves on validation, λ and σ, exact gradients and spectral radius, along fine-tuning."""
    figure, grid = plt.subplots(2, 3, figsize=(15, 6.4))
    axes = grid.flatten()
    shown = {
        "val_psnr": "PSNR on validation (dB)",
        "val_converged": "share of converged solves on validation",
        "weight": "λ",
        "sigma": "σ",
        "exact": "share of images with the implicit gradient; dotted: with any",
        "spectral_radius": "spectral radius of the fixed-point map",
    }
    for axis, (column, title) in zip(axes, shown.items(), strict=True):
        for name, rows in curves.items():
            points = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
            (line,) = axis.plot(*zip(*points, strict=True) if points else ([], []), label=name)
            if column == "exact":
                rest = [(int(row["step"]), 1 - float(row["left_out"])) for row in rows if row.get("left_out")]
                axis.plot(*zip(*rest, strict=True) if rest else ([], []), ":", color=line.get_color())
        axis.set(xlabel="step", title=title)
    axes[2].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    with io.replacing(path) as temporary:
        # No creation date: the same pictures make the same file.
        figure.savefig(temporary, dpi=100, metadata={"Software": None})
    plt.close(figure)
