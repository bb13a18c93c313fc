"""The bundle on disk: a folder of `config.json` and `weights.safetensors`, no pickle.

A bundle may come from anywhere. Reading one executes nothing that it brings, takes seconds and less than 1 GB, whatever
it holds: what it describes is checked before memory is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from elder import io, regularizers
from elder.errors import UserError
from elder.model import config as configs
from elder.model import weights
from elder.regularizers.base import Regularizer

# Characters of the line that says what is wrong with a bundle, whose names may be long.
LONGEST = 300


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
        values = {k: value.detach().cpu().to(dtype).contiguous() for k, value in regularizer.state_dict().items()}
        safetensors.torch.save_file(values, temporary)
    kept = {"files": sorted(files)} if files else {}
    io.write_json(Path(folder) / "config.json", {"format": configs.FORMAT, **config, **kept})


def own_files(folder: str | Path, names: Iterable[str]) -> dict[str, str]:
    """The paths of the files in the bundle by the settings that they belong to, checked by `io.check_npy`."""
    paths = {name: str(Path(folder) / f"{name}.npy") for name in names}
    for path in paths.values():
        io.check_npy(path)
    return paths


def read(folder: str | Path) -> tuple[Regularizer, dict[str, Any]]:
    """The frozen regularizer, in float32, and the checked configuration of a bundle.

    Raises `UserError` when it is missing or broken.
    """
    folder = Path(folder)
    with reading(folder):
        found = (folder / "config.json").exists()
    if not found:
        raise UserError(f"{folder}: no model here (a bundle holds config.json and weights.safetensors)")
    with reading(folder):
        config = configs.read(folder / "config.json")
        # There, a tensor has a shape and a dtype, and takes no memory.
        with torch.device("meta"):
            skeleton = regularizers.make(**config["regularizer"])
        regularizer = weights.read(folder / "weights.safetensors", skeleton)
    return regularizer.eval().requires_grad_(False), config


@contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """Turn whatever is wrong with a bundle into one `UserError` of one line, which names the folder."""
    try:
        yield
    except Exception as error:
        reason = str(error).replace(f"{folder}/", "") or type(error).__name__
        line = "".join(c if c.isprintable() else "?" for c in reason)
        short = line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
        raise UserError(f"{folder}: the bundle is broken ({short})") from None
