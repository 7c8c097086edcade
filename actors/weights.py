"""Weights on their way from the learner to the engines, by version and checksum.

On CPU they travel through Ray's object store as numpy arrays (zero copy for readers on the same machine). Everything
that moves weights goes through `publish` and `unpack_weights`, so that another carrier changes this file alone.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import ray
import torch

from hatch_ray.model.base import checksum


@dataclass(frozen=True)
class PackedWeights:
    """A full state dict as numpy arrays. bfloat16, which numpy lacks, is viewed as int16 and named in `dtypes`."""

    version: int
    arrays: dict[str, np.ndarray]
    dtypes: dict[str, str]
    checksum: str


@dataclass(frozen=True)
class WeightsHandle:
    """Where a version lies: a reference inside a record, so that Ray does not fetch it on the way."""

    version: int
    ref: ray.ObjectRef


def pack_weights(state: Mapping[str, torch.Tensor], version: int) -> PackedWeights:
    """Copy a state dict (tied head included) to numpy."""
    arrays, dtypes = {}, {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        dtypes[name] = str(tensor.dtype).removeprefix("torch.")
        arrays[name] = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return PackedWeights(version, arrays, dtypes, checksum(arrays))


def unpack_weights(packed: PackedWeights) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) pairs over the packed memory, which must not be written to.

    Raises ValueError when the arrays are not those that were packed.
    """
    found = checksum(packed.arrays)
    if found != packed.checksum:
        raise ValueError(f"weights of version {packed.version} arrived with checksum {found}, not {packed.checksum}")
    for name, array in packed.arrays.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensor = torch.from_numpy(array)
        yield name, tensor.view(torch.bfloat16) if packed.dtypes[name] == "bfloat16" else tensor


def publish(board: ray.actor.ActorHandle, state: Mapping[str, torch.Tensor], version: int) -> ray.ObjectRef:
    """Put a version into the object store and tell the board; returns the reference of the board's answer."""
    return board.publish.remote(WeightsHandle(version, ray.put(pack_weights(state, version))))


class WeightsBoard:
    """Holds the newest version. It may be published by one learner worker and awaited by many.

    Life of a version: publish(v) -> the version before is let go -> newest() and wait_for(<= v) return it.
    """

    def __init__(self, version: int) -> None:
        """`version` is what the engines start with: nothing has to be sent for it."""
        self._version = version
        self._newest: WeightsHandle | None = None
        self._changed = asyncio.Condition()

    async def publish(self, handle: WeightsHandle) -> int:
        async with self._changed:
            if handle.version != self._version + 1:
                raise ValueError(f"version {handle.version} published after {self._version}")
            self._version, self._newest = handle.version, handle
            self._changed.notify_all()
        return handle.version

    async def newest(self) -> tuple[int, WeightsHandle | None]:
        """(version, handle); the handle is None while the engines' own first weights are the newest."""
        return self._version, self._newest

    async def wait_for(self, version: int) -> tuple[int, WeightsHandle | None]:
        """As `newest`, once it is at least `version`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._version >= version)
            return self._version, self._newest
