"""Weights on their way from the learner to the engines, by version and checksum.

On CPU they travel through Ray's object store as numpy arrays (zero copy for readers on the same machine). Everything
that moves weights goes through `publish` and `unpack_weights`, so that another carrier changes this file alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import ray
import torch

from actors.messages import WeightsHandle
from hatch_ray.model.base import checksum


@dataclass(frozen=True)
class PackedWeights:
    """A full state dict as numpy arrays. bfloat16, which numpy lacks, is viewed as int16 and named in `dtypes`."""

    version: int
    arrays: dict[str, np.ndarray]
    dtypes: dict[str, str]
    checksum: str


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
