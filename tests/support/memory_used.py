"""What torch really holds, counted by storages: live bytes and their peak."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages of these tensors, each once (a tied head, a view)."""
    storages = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())


class MemoryUsed(TorchDispatchMode):
    """Within the block, the storages that operations make: `live` bytes now, `peak` the most at once.

    What existed before (weights) is not counted. A storage counts from its making until nothing holds it, so gradients,
    moments, activations and what an operation needs for a moment are all in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in _pytree.tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        result = func(*args, **(kwargs or {}))
        for tensor in _pytree.tree_leaves(result):
            if torch.is_tensor(tensor) and tensor.untyped_storage()._cdata not in before:
                self._take(tensor.untyped_storage())
        return result

    def _take(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
