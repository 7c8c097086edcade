"""Weights on their way from the learner (`Publisher`) to the engines (`unpack_weights`), by version and checksum.

`rollout.weights` names what carries them:

- object_store: numpy arrays in Ray's object store (zero copy for readers on the same machine).
- nixl: Ray Direct Transport. A copy stays where the learner learns, on its GPU or in its memory, and each engine reads
  it from there when it is ready to: GPU to GPU by NVLink or RDMA, past the memory of both machines.

Both are pulled. A broadcast among GPUs (NCCL) would need every engine at once, and hang when one has died or is new.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import ray
import torch
import xxhash

from actors.runtime.deadlines import limits, wait_for
from actors.runtime.messages import ProbeScores, WeightsHandle
from hatch_ray.config_sections import WeightsCarrier
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

    @property
    def names(self) -> Iterable[str]:
        return self.arrays.keys()

    def checksum_now(self) -> str:
        """Of what is there, to be compared with `checksum`."""
        return checksum(self.arrays)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor over the array) pairs."""
        for name, array in self.arrays.items():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                tensor = torch.from_numpy(array)
            yield name, tensor.view(torch.bfloat16) if self.dtypes[name] == "bfloat16" else tensor


@dataclass(frozen=True)
class LiveWeights:
    """A state dict, or the part of it that learns, in one tensor that stays where it is until an engine reads it.

    places: of each name, dtype, shape and first byte.
    """

    version: int
    memory: torch.Tensor
    places: dict[str, tuple[str, tuple[int, ...], int]]
    checksum: str = ""

    @property
    def names(self) -> Iterable[str]:
        return self.places.keys()

    def checksum_now(self) -> str:
        """Of what is there, to be compared with `checksum`."""
        return checksum_in_place(self)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, view of the memory) pairs."""
        for name, (dtype, shape, first) in self.places.items():
            kind: torch.dtype = getattr(torch, dtype)
            yield name, self.memory[first : first + math.prod(shape) * kind.itemsize].view(kind).view(shape)


ALIGNED = 64
"""Bytes: each tensor of a `LiveWeights` begins at a multiple of this."""
PIECE = 2**22
"""Words that `checksum_in_place` takes at a time."""


def lay_out(state: Mapping[str, torch.Tensor], version: int) -> LiveWeights:
    """A copy of a state dict in one tensor on its device, not yet with its checksum."""
    places, size = {}, 0
    for name, tensor in state.items():
        places[name] = (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), size)
        size += -(-tensor.nbytes // ALIGNED) * ALIGNED
    device = next(iter(state.values())).device
    live = LiveWeights(version, torch.empty(size, dtype=torch.uint8, device=device), places)
    torch._foreach_copy_([view for _, view in live.tensors()], [tensor.detach() for tensor in state.values()])
    return live


def checksum_in_place(live: LiveWeights) -> str:
    """XXH3 over the places and two sums of all 32-bit words, one of them weighted by position (as in Fletcher's
    checksum: a word that changed or moved changes them). The sums are made where the memory lies."""
    words = live.memory.view(torch.int32)
    sums = torch.zeros(2, dtype=torch.int64, device=words.device)
    for first in range(0, len(words), PIECE):
        piece = words[first : first + PIECE].to(torch.int64)
        sums[0] += piece.sum()
        sums[1] += (piece * torch.arange(first + 1, first + 1 + len(piece), device=words.device)).sum()
    digest = xxhash.xxh3_64(repr(sorted(live.places.items())).encode())
    digest.update(sums.cpu().numpy().data)
    return digest.hexdigest()


def pack_weights(state: Mapping[str, torch.Tensor], version: int) -> PackedWeights:
    """A state dict (tied head included) as numpy; on a CPU its arrays are views of the tensors."""
    arrays, dtypes = {}, {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        dtypes[name] = str(tensor.dtype).removeprefix("torch.")
        arrays[name] = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return PackedWeights(version, arrays, dtypes, checksum(arrays))


def unpack_weights(packed: PackedWeights | LiveWeights) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) pairs over the packed memory, which must not be written to.

    Raises ValueError at once, before the first pair, when the weights are not those that were packed: vLLM does not
    survive a reload that breaks off.
    """
    found = packed.checksum_now()
    if found != packed.checksum:
        raise ValueError(f"weights of version {packed.version} arrived with checksum {found}, not {packed.checksum}")
    return packed.tensors()


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


def only_learned(named: Iterable[tuple[str, torch.Tensor]], parts: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Of (name, tensor) pairs those that lie in these parts."""
    prefixes = tuple(f"{part}." for part in parts)
    return ((name, tensor) for name, tensor in named if name.startswith(prefixes))


class Publisher:
    """Sends versions from the learner's rank 0 to the board. The learner waits for a copy in memory (and
    for the version before, if that is still being sent).

    Checksum, carrier and board follow in a thread, one version after the other.
    """

    def __init__(self, board: ray.actor.ActorHandle, carrier: WeightsCarrier = "object_store") -> None:
        self.board, self.carrier = board, carrier
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self._last: Future[None] | None = None
        self._buffer: dict[str, torch.Tensor] = {}

    def publish(
        self, state: Iterable[tuple[str, torch.Tensor]], version: int, probe: ProbeScores | None = None
    ) -> None:
        """Take a copy and return. Raises what the version before failed with.

        state: (name, tensor) pairs, taken one by one. probe: what an engine must answer with these weights.
        """
        self.wait()
        if self.carrier == "nixl":  # memory of its own: engines read a version while the next one is made
            self._last = self._thread.submit(self._send_live, lay_out(dict(state), version), probe)
        else:
            self._last = self._thread.submit(self._send_packed, self._buffered(state), version, probe)

    def _buffered(self, state: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """A copy in memory that is used again for every version: fresh memory would cost more than the copy."""
        names = []
        for name, tensor in state:
            if name not in self._buffer:
                self._buffer[name] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._buffer[name].copy_(tensor.detach())
            names.append(name)
        assert self._buffer.keys() == set(names), "the same parts learn in every step"
        return self._buffer

    def check(self) -> None:
        """Raise what the last version failed with, if it has."""
        if self._last is not None and self._last.done():
            self._last.result()

    def wait(self) -> None:
        """Until the last version has arrived. Raises what it failed with (its calls have deadlines of their own)."""
        if self._last is not None:
            self._last.result()

    def _send_packed(self, state: Mapping[str, torch.Tensor], version: int, probe: ProbeScores | None) -> None:
        packed = pack_weights(state, version)
        self._tell(WeightsHandle(version, ray.put(packed), packed.checksum, probe))

    def _send_live(self, live: LiveWeights, probe: ProbeScores | None) -> None:
        live = replace(live, checksum=checksum_in_place(live))
        self._tell(WeightsHandle(live.version, ray.put(live, _tensor_transport="nixl"), live.checksum, probe))

    def _tell(self, handle: WeightsHandle) -> None:
        wait_for(self.board.publish.remote(handle), "grpo: publishing weights", limits.call)
