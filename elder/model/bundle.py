"""The bundle on disk: a folder of `config.json` and `weights.safetensors`, no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from elder import io, regularizers
from elder.errors import UserError
from elder.regularizers.base import Regularizer

FORMAT = 1


def write(
    folder: str | Path,
    regularizer: Regularizer,
    config: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    files: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write the weights, then the configuration, each whole or not at all.

    config: `regularizer` (what `regularizers.make` takes) and `metadata`. That of a model also has `problem` (name,
    settings) and `tuning`. dtype: of the weights in the file, that of the regularizer if `None`. `read` returns
    float32 in any case.
    files: what the files hold that settings of the problem name, by the setting; each is written as SETTING.npy.
    """
    for name, array in (files or {}).items():
        with io.replacing(Path(folder) / f"{name}.npy") as temporary:
            np.save(temporary, array, allow_pickle=False)
    with io.replacing(Path(folder) / "weights.safetensors") as temporary:
        weights = {k: value.detach().cpu().to(dtype).contiguous() for k, value in regularizer.state_dict().items()}
        safetensors.torch.save_file(weights, temporary)
    kept = {"files": sorted(files)} if files else {}
    io.write_json(Path(folder) / "config.json", {"format": FORMAT, **config, **kept})


def own_files(folder: str | Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The settings of the problem whose files the bundle holds, with the paths of these."""
    return {name: str(Path(folder) / f"{Path(name).name}.npy") for name in config.get("files", [])}


def read(folder: str | Path) -> tuple[Regularizer, dict[str, Any]]:
    """The frozen regularizer and the configuration of a bundle. Raises `UserError` when it is missing or broken."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no model here (a bundle holds config.json and weights.safetensors)")
    config = io.read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{folder}: the bundle is broken (config.json holds no object with names)")
    if config.get("format") != FORMAT:
        raise UserError(f"{folder}: bundle format {config.get('format')}, but this version of elder reads {FORMAT}")
    try:
        regularizer = regularizers.make(**config["regularizer"])
        regularizer.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))
    except UserError:
        raise
    except Exception as error:  # a truncated weights file, a missing key, a shape that does not fit
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: the bundle is broken ({reason})") from None
    return regularizer.eval().requires_grad_(False), config
