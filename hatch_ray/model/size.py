"""How large a model is, before anything is loaded (`model/memory.py`: what training it takes). Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatch_ray.model.families import NOT_SHARED, PUBLISHED, family_of_kind
from hatch_ray.model.families.family import sections
from hatch_ray.model.folder_check import check_model_folder
from hatch_ray.model.shapes import Shapes
from hatch_ray.model.source import model_source
from hatch_ray.model.tensors import tensor_shapes


def count_parameters(base: str) -> int:
    """Parameters of a model folder (from the headers of its files) or of a name, by its config.json.

    Raises ValueError for a name that is not known, and for a folder that is not whole (`check_model_folder`).
    """
    source = Path(base if base in PUBLISHED else model_source(base))
    if base in PUBLISHED or not source.is_dir():
        return shapes_of(base).parameters
    check_model_folder(source)
    return sum(math.prod(shape) for shape in tensor_shapes(source).values())


def shapes_of(base: str) -> Shapes:
    """The sizes of a model folder, "hatch-tiny" or a name. Raises ValueError as `read_config`, and for a family that is
    not known.
    """
    return read_shapes(read_config(base), base)


def read_shapes(config: Mapping[str, Any], base: str = "") -> Shapes:
    """The sizes in a config.json. Raises KeyError for one that is absent, ValueError for an unknown family."""
    return family_of_kind(base, config.get("model_type")).shapes(config)


def check_prefixes(base: str, shared: bool) -> None:
    """Raise ValueError when prompts shall be shared (grpo.shared_prefix) by a model that cannot."""
    config = read_config(base)
    if shared and not family_of_kind(base, config.get("model_type")).shares_prefixes(sections(config)[0]):
        raise ValueError(f"model.base={base} has {NOT_SHARED}")


def read_config(base: str) -> Mapping[str, Any]:
    """The config.json of a model folder, "hatch-tiny", a published name or, downloaded, of another name of the hub.

    Raises ValueError where there is none.
    """
    if base in PUBLISHED:
        return PUBLISHED[base]
    source = Path(model_source(base))
    path = source / "config.json" if source.is_dir() else _downloaded_config(base)
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _downloaded_config(base: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(base, "config.json"))
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"model.base={base} is not a folder, and no config.json of that name could be read from the hub: {reason}"
        ) from None
