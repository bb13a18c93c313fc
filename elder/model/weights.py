"""weights.safetensors of a bundle: compared with the regularizer that config.json describes, then read.

The file holds 8 bytes with the length of the header, little-endian; the header, JSON that gives each tensor's dtype,
shape and place; and the values. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from elder import io
from elder.errors import UserError

# What weights may be stored as. Whole numbers are no weights.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Bytes of the header, which has some 100 for each tensor.
LARGEST_HEADER = 2**20
# Values that are read at a time, so that little memory is taken beside the weights themselves.
CHUNK = 2**18
T = TypeVar("T", bound=nn.Module)


@torch.no_grad()
def read(path: str | Path, skeleton: T) -> T:
    """`skeleton` with the weights of a file, in float32, laid out in memory as its own.

    skeleton: a module on the meta device, so that memory is taken once names, shapes and dtypes have been compared.
    Raises `UserError` where they differ, and for a file that is cut, has more than its header says, or holds NaN or
    infinity.
    """
    expected, values = skeleton.state_dict(), {}
    with io.opened(path) as file:
        stored, start = _header(file)
        _compare(stored, expected, Path(path).stat().st_size - start)
        for name, value in expected.items():
            values[name] = torch.empty_strided(value.shape, value.stride(), dtype=torch.float32, device="cpu")
            file.seek(start + stored[name]["data_offsets"][0])
            _fill(values[name], file, DTYPES[stored[name]["dtype"]], name)
    skeleton.load_state_dict(values, assign=True)
    return skeleton


def _header(file: BufferedReader) -> tuple[dict[str, Any], int]:
    """What the file says of each tensor, and where the values begin."""
    length = int.from_bytes(file.read(8), "little")
    if length > LARGEST_HEADER:
        raise UserError(f"weights.safetensors: a header of {length} bytes; at most {LARGEST_HEADER} are read")
    try:
        header = io.parse_json(file.read(length))
    except ValueError as error:
        raise UserError(f"weights.safetensors: not a safetensors file ({error})") from None
    if not isinstance(header, dict):
        raise UserError("weights.safetensors: not a safetensors file (the header holds no object with names)")
    header.pop("__metadata__", None)
    return header, 8 + length


def _compare(stored: dict[str, Any], expected: Mapping[str, Tensor], there: int) -> None:
    """Raise `UserError` unless the file holds the expected tensors in `there` bytes of values, and nothing else."""
    for name in [*expected, *stored]:
        if (name in stored) != (name in expected):
            raise UserError(
                f"weights.safetensors: {name} is {'missing' if name in expected else 'unknown to config.json'}"
            )
    end = 0
    for name, value in expected.items():
        shape = list(value.shape)
        match stored[name]:
            case {"dtype": str(dtype), "shape": list(given), "data_offsets": [int(first), int(last)]}:
                pass
            case _:
                raise UserError(f"weights.safetensors: {name} needs dtype, shape and data_offsets")
        if dtype not in DTYPES:
            raise UserError(f"weights.safetensors: {name} is {dtype}; weights are one of {', '.join(DTYPES)}")
        if given != shape:
            raise UserError(f"weights.safetensors: {name} is {given}, but config.json describes {shape}")
        if first < 0 or last - first != math.prod(shape) * DTYPES[dtype].itemsize:
            raise UserError(f"weights.safetensors: the data_offsets of {name} do not fit its shape")
        end = max(end, last)
    if end != there:
        raise UserError(f"weights.safetensors: the values take {end} bytes, but the file holds {there}")


def _fill(target: Tensor, file: BufferedReader, dtype: torch.dtype, name: str) -> None:
    """Read the values of one tensor, whatever its layout in memory, some rows at a time."""
    rows = target if target.ndim else target.view(1)
    parts = rows.split(max(1, CHUNK // rows[0].numel()))
    content = bytearray(parts[0].numel() * dtype.itemsize)
    for part in parts:
        length = part.numel() * dtype.itemsize
        if file.readinto(memoryview(content)[:length]) != length:
            raise UserError("weights.safetensors: ends too early")
        values = torch.frombuffer(content, dtype=dtype, count=part.numel()).float()
        if not bool(values.isfinite().all()):
            raise UserError(f"its weights are not finite: {name} holds NaN or infinity")
        part.copy_(values.view(part.shape))
