"""Whether a model's weights fit into a running engine; and the times of a request, which vLLM gives with a logger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from hatch_ray.model.tensors import tensor_shapes


class RequestTimes(StatLoggerBase):
    """Logs nothing: with any logger vLLM gives each RequestOutput its `metrics` (arrival, first and last token)."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

    def record(self, *_: Any, **__: Any) -> None: ...

    def log_engine_initialized(self) -> None: ...


def check_fit(before: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Raise ValueError unless the folder's weights have the names and shapes `before`; OSError when it has none."""
    after = shapes(folder)
    wrong = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if wrong:
        raise ValueError(
            f"{folder} does not have the weights of the model that is served: {wrong[0]} has shape "
            f"{after.get(wrong[0], 'none')}, not {before.get(wrong[0], 'none')}; start a service of its own for it"
        )


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """`tensor_shapes` of a folder that must have weights: OSError when it has none."""
    found = tensor_shapes(folder)
    if not found:
        raise FileNotFoundError(f"{folder} has no safetensors files")
    return found
