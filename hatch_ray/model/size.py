"""How many parameters a model has, before anything is loaded (`model/memory.py`: what training it takes)."""

from __future__ import annotations

import math
from pathlib import Path

from hatch_ray.model.folder_check import check_model_folder
from hatch_ray.model.shapes import PUBLISHED, shapes_of
from hatch_ray.model.source import model_source
from hatch_ray.model.tensors import tensor_shapes


def count_parameters(base: str) -> int:
    """Parameters of a model folder (from the headers of its files) or of a published name.

    Raises ValueError for a name that is neither published nor on this disk, and for a folder that is not whole
    (`check_model_folder`).
    """
    source = Path(base if base in PUBLISHED else model_source(base))
    if base in PUBLISHED or not source.is_dir():
        return shapes_of(base).parameters
    check_model_folder(source)
    return sum(math.prod(shape) for shape in tensor_shapes(source).values())
