"""Files: arrays, pictures and volumes are read, and whatever is written is written whole or not at all."""

from elder.io.arrays import PICTURES, read_array, read_arrays, read_stack
from elder.io.atomic import read_json, replacing, write_csv, write_json
from elder.io.images import SCALINGS, list_sources, read_images, stem, suffix
from elder.io.pictures import list_images, read_image, to_array, to_tensor, write_image

__all__ = [
    "PICTURES",
    "SCALINGS",
    "list_images",
    "list_sources",
    "read_array",
    "read_arrays",
    "read_image",
    "read_images",
    "read_json",
    "read_stack",
    "replacing",
    "stem",
    "suffix",
    "to_array",
    "to_tensor",
    "write_csv",
    "write_image",
    "write_json",
]
