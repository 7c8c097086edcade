"""What runs inside vLLM for the service: weights of a folder into a running engine, and the times of a request."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from vllm.v1.metrics.loggers import StatLoggerBase

HEAD = "lm_head.weight"
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


class FolderLoader:
    """vLLM's worker with two more methods (its `worker_extension_cls`)."""

    model_runner: Any

    def end_with_parent(self) -> None:
        """Let Linux kill the engine's process when the one that started it dies, however that came to die."""
        if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError("prctl(PR_SET_PDEATHSIG) failed")

    def load_folder(self, folder: str) -> None:
        """Replace every weight by those of a Hugging Face folder, read whole before the first is replaced."""
        weights: dict[str, Any] = {}
        for path in _files(Path(folder)):
            weights |= load_file(path)
        if HEAD not in weights:  # a head that is tied to the embedding would keep its former packed copy on CPU
            weights[HEAD] = weights[next(name for name in weights if name.endswith("embed_tokens.weight"))]
        self.model_runner.reload_weights(weights_iterator=iter(weights.items()))


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
    """Shape of every tensor of a folder, from the files' headers."""
    found: dict[str, tuple[int, ...]] = {}
    for path in _files(folder):
        with safe_open(path, "pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no safetensors files")
    return files
