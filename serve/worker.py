"""Imported by vLLM in its engine's process alone: that process ends with the replica, and can load other weights."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
from pathlib import Path
from typing import Any

HEAD = "lm_head.weight"
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def end_with_parent() -> None:
    """Let Linux kill this process when the one that started it dies, however that came to die.

    vLLM's engine would stay without it, with all its memory.
    """
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError("prctl(PR_SET_PDEATHSIG) failed")


if multiprocessing.parent_process() is not None:
    end_with_parent()


class FolderLoader:
    """vLLM's worker with one more method (its `worker_extension_cls`)."""

    model_runner: Any

    def load_folder(self, folder: str) -> None:
        """Replace every weight by those of a Hugging Face folder, read whole before the first is replaced."""
        from safetensors.torch import load_file

        weights: dict[str, Any] = {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            weights |= load_file(path)
        if HEAD not in weights:  # a head that is tied to the embedding would keep its former packed copy on CPU
            weights[HEAD] = weights[next(name for name in weights if name.endswith("embed_tokens.weight"))]
        self.model_runner.reload_weights(weights_iterator=iter(weights.items()))
