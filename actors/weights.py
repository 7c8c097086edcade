"""Weights on their way from the learner (`Publisher`) to the engines (`unpack_weights`), by version and checksum.

`rollout.weights` names what carries them:

- object_store: numpy arrays in Ray's object store (zero copy for readers on the same machine).
- nixl: Ray Direct Transport. A copy stays where the learner learns, on its GPU or in its memory, and each engine reads
  it from there when it is ready to: GPU to GPU by NVLink or RDMA, past the memory of both machines.

Both are pulled. A broadcast among GPUs (NCCL) would need every engine at once, and hang when one has died or is new.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import ray
import torch
import xxhash
from torch.nn import functional

from actors.deadlines import limits, wait_for
from actors.messages import ProbeScores, WeightsHandle
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


@dataclass(frozen=True)
class LiveWeights:
    """A state dict, or the part of it that learns, whose tensors stay where they are until an engine reads them."""

    version: int
    tensors: dict[str, torch.Tensor]
    checksum: str

    @property
    def names(self) -> Iterable[str]:
        return self.tensors.keys()


SUMS = 64
"""`checksum_in_place` adds up every 64th word."""


def checksum_in_place(tensors: Mapping[str, torch.Tensor]) -> str:
    """XXH3 over names, shapes, types and 64 sums of 16-bit words a tensor. The sums are made where the tensor lies."""
    digest = xxhash.xxh3_64()
    for name, tensor in sorted(tensors.items()):
        words = tensor.detach().contiguous().reshape(-1).view(torch.int16)
        sums = functional.pad(words, (0, -len(words) % SUMS)).view(-1, SUMS).sum(0, dtype=torch.int64)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
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
    found = checksum_in_place(packed.tensors) if isinstance(packed, LiveWeights) else checksum(packed.arrays)
    if found != packed.checksum:
        raise ValueError(f"weights of version {packed.version} arrived with checksum {found}, not {packed.checksum}")
    return iter(packed.tensors.items()) if isinstance(packed, LiveWeights) else _tensors(packed)


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


def check_carrier(carrier: WeightsCarrier) -> None:
    """Raise RuntimeError where this environment cannot carry weights so."""
    if carrier == "nixl" and find_spec("nixl") is None:
        raise RuntimeError(
            "rollout.weights=nixl needs the package nixl, which is not installed: `make install BACKEND=gpu` brings it "
            "along; or set rollout.weights=object_store"
        )


class Publisher:
    """Sends versions from the learner's rank 0 to the board. The learner waits for a copy in memory, no longer.

    Checksum, carrier and board follow in a thread, one version after the other.
    """

    def __init__(self, board: ray.actor.ActorHandle, carrier: WeightsCarrier = "object_store") -> None:
        check_carrier(carrier)
        self.board, self.carrier = board, carrier
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self._last: Future[None] | None = None
        self._buffer: dict[str, torch.Tensor] = {}

    def publish(self, state: Mapping[str, torch.Tensor], version: int, probe: ProbeScores | None = None) -> None:
        """Take a copy and return. Raises what the version before failed with.

        probe: what an engine must answer with these weights.
        """
        self.wait()
        self._last = self._thread.submit(self._send, self.copied(state), version, probe)

    def copied(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A copy that stays as it is until it has been sent."""
        tensors = {name: tensor.detach() for name, tensor in state.items()}
        if self.carrier == "nixl":  # engines read the copies themselves, some while the next version is made
            return {name: tensor.clone() for name, tensor in tensors.items()}
        if not self._buffer:  # used again for every version: fresh memory would cost more than the copy
            self._buffer = {
                name: torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
                for name, tensor in tensors.items()
            }
        torch._foreach_copy_(list(self._buffer.values()), list(tensors.values()))
        return self._buffer

    def check(self) -> None:
        """Raise what the last version failed with, if it has."""
        if self._last is not None and self._last.done():
            self._last.result()

    def wait(self) -> None:
        """Until the last version has arrived. Raises what it failed with (its calls have deadlines of their own)."""
        if self._last is not None:
            self._last.result()

    def _send(self, state: Mapping[str, torch.Tensor], version: int, probe: ProbeScores | None) -> None:
        handle = stored_weights(state, version, self.carrier, probe)
        wait_for(self.board.publish.remote(handle), "grpo: publishing weights", limits.call)


def stored_weights(
    state: Mapping[str, torch.Tensor], version: int, carrier: WeightsCarrier, probe: ProbeScores | None = None
) -> WeightsHandle:
    """A version where engines can fetch it. With nixl only an actor can do this, and `state` must stay as it is."""
    if carrier == "nixl":
        live = LiveWeights(version, dict(state), checksum_in_place(state))
        return WeightsHandle(version, ray.put(live, _tensor_transport="nixl"), live.checksum, probe)
    packed = pack_weights(state, version)
    return WeightsHandle(version, ray.put(packed), packed.checksum, probe)
