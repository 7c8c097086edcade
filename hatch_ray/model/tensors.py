"""The safetensors files of a model folder, by their headers."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

INDEX = "model.safetensors.index.json"


def tensor_files(folder: Path) -> list[Path]:
    """The folder's weight files: those that its index names, whether they are there or not; else all there are.

    Raises ValueError for an index that cannot be read.
    """
    if not (folder / INDEX).is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder / INDEX} is not an index of weights ({error}); copy it again") from None


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the folder's weight files, from their headers; {} where there are none.

    Raises ValueError for a file that is damaged, OSError for one that is missing.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path in tensor_files(folder):
        try:
            with safe_open(path, "numpy") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file, or is cut short ({error}); copy it again") from None
    return found
