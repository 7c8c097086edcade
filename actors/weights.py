"""Weights on their way from the learner to the engines, by version and checksum.

On CPU they travel through Ray's object store as numpy arrays (zero copy for readers on the same machine). Everything
that moves weights goes through `Publisher` and `unpack_weights`, so that another carrier changes this file alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import ray
import torch

from actors.deadlines import limits, wait_for
from actors.messages import ProbeScores, WeightsHandle
from hatch_ray.model.base import checksum


@dataclass(frozen=True)
class PackedWeights:
    """A state dict, or the part of it that learns, as numpy arrays.

    bfloat16, which numpy lacks, is viewed as int16 and named in `dtypes`.
    """

    version: int
    arrays: dict[str, np.ndarray]
    dtypes: dict[str, str]
    checksum: str


def pack_weights(state: Mapping[str, torch.Tensor], version: int) -> PackedWeights:
    """A state dict (tied head included) as numpy; on a CPU its arrays are views of the tensors."""
    arrays, dtypes = {}, {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        dtypes[name] = str(tensor.dtype).removeprefix("torch.")
        arrays[name] = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return PackedWeights(version, arrays, dtypes, checksum(arrays))


def unpack_weights(packed: PackedWeights) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) pairs over the packed memory, which must not be written to.

    Raises ValueError at once, before the first pair, when the arrays are not those that were packed: vLLM does not
    survive a reload that breaks off.
    """
    found = checksum(packed.arrays)
    if found != packed.checksum:
        raise ValueError(f"weights of version {packed.version} arrived with checksum {found}, not {packed.checksum}")
    return _tensors(packed)


def _tensors(packed: PackedWeights) -> Iterator[tuple[str, torch.Tensor]]:
    for name, array in packed.arrays.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensor = torch.from_numpy(array)
        yield name, tensor.view(torch.bfloat16) if packed.dtypes[name] == "bfloat16" else tensor


BLOCK = re.compile(r".*\.(?:layers|blocks)\.\d+\.[^.]+")
"""An attention or MLP of one layer: vLLM fuses its linear layers, so it can only be sent as a whole."""


def learned_parts(model: torch.nn.Module) -> tuple[str, ...]:
    """Prefixes of what learns, in whole attentions and MLPs: all else is what the engines started with."""
    # Duplicates stay: a tied head is a tensor of its own to vLLM.
    tied = model.named_parameters(remove_duplicate=False)
    names = [name for name, parameter in tied if parameter.requires_grad]
    blocks = (BLOCK.match(name) for name in names)
    return tuple(dict.fromkeys(
        block.group() if block else name.rpartition(".")[0] for block, name in zip(blocks, names, strict=True)
    ))  # fmt: skip


def only_learned(state: Mapping[str, torch.Tensor], parts: Sequence[str]) -> dict[str, torch.Tensor]:
    """The tensors of a state dict that lie in these parts."""
    prefixes = tuple(f"{part}." for part in parts)
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}


class Publisher:
    """Sends versions from the learner's rank 0 to the board. The learner waits for a copy in memory, no longer.

    Checksum, object store and board follow in a thread, one version after the other.
    """

    def __init__(self, board: ray.actor.ActorHandle) -> None:
        self.board = board
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self._last: Future[None] | None = None

    def publish(self, state: Mapping[str, torch.Tensor], version: int, probe: ProbeScores | None = None) -> None:
        """Take a copy and return. Raises what the version before failed with.

        probe: what an engine must answer with these weights.
        """
        copy = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
        self.wait()
        self._last = self._thread.submit(self._send, copy, version, probe)

    def check(self) -> None:
        """Raise what the last version failed with, if it has."""
        if self._last is not None and self._last.done():
            self._last.result()

    def wait(self) -> None:
        """Until the last version has arrived. Raises what it failed with (its calls have deadlines of their own)."""
        if self._last is not None:
            self._last.result()

    def _send(self, state: Mapping[str, torch.Tensor], version: int, probe: ProbeScores | None) -> None:
        packed = pack_weights(state, version)
        handle = WeightsHandle(version, ray.put(packed), packed.checksum, probe)
        wait_for(self.board.publish.remote(handle), "grpo: publishing weights", limits.call)
