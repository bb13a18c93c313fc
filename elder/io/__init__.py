"""Files: arrays, pictures and scans are read, and whatever is written is written whole or not at all."""

from elder.io.apart import check_apart
from elder.io.arrays import binary, check_mask_size, read_array, read_arrays, read_stack
from elder.io.atomic import replacing, write_csv, write_json
from elder.io.bounded import check_npy, opened, parse_json, read_json
from elder.io.images import (
    Names,
    check_axes,
    file_names,
    kind_of,
    list_sources,
    numbered_name,
    read_image,
    read_images,
    read_measured,
    read_numbered,
)
from elder.io.pictures import PICTURES, to_array, to_tensor, with_channels, write_image
from elder.io.stack import AXES, SCALINGS, Scaling, check_scaling
from elder.io.stored import Lazy, StoredImage, stored_image

__all__ = [
    "AXES",
    "PICTURES",
    "SCALINGS",
    "Lazy",
    "Names",
    "Scaling",
    "StoredImage",
    "binary",
    "check_apart",
    "check_axes",
    "check_mask_size",
    "check_npy",
    "check_scaling",
    "file_names",
    "kind_of",
    "list_sources",
    "numbered_name",
    "opened",
    "parse_json",
    "read_array",
    "read_arrays",
    "read_image",
    "read_images",
    "read_json",
    "read_measured",
    "read_numbered",
    "read_stack",
    "replacing",
    "stored_image",
    "to_array",
    "to_tensor",
    "with_channels",
    "write_csv",
    "write_image",
    "write_json",
]
