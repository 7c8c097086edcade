"""What a training loop needs to go on exactly where it was: weights, optimizer, schedule, random generators.

On disk state.json, and state.safetensors or, of a sharded model, shards/*.safetensors with each worker's part
(torch.distributed.checkpoint): nothing in them can run code. Either is read by any number of workers, sharded or not.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor
from transformers import get_scheduler

from hatch_ray.config_sections import Trained
from hatch_ray.disk import is_full, when_there_is_room
from hatch_ray.learning.workers import Workers

TENSORS = "state.safetensors"
NUMBERS = "state.json"
SHARDS = "shards"


@dataclass(frozen=True)
class TrainerState:
    """A copy on the CPU, which later steps do not change.

    tensors   "weights.NAME", "optimizer.INDEX.NAME", "rng.cpu", "rng.cuda".
    numbers   "param_groups" of the optimizer, "scheduler".
    """

    tensors: dict[str, torch.Tensor]
    numbers: dict[str, Any]


def make_optimizer(
    learning: Sequence[torch.Tensor], settings: Trained, steps: int
) -> tuple[torch.optim.Optimizer, Any]:
    """A stage's AdamW and its learning-rate schedule over so many optimizer steps."""
    fused = learning[0].is_cuda  # in place: no temporary copy of all weights
    optimizer = torch.optim.AdamW(learning, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)
    name = "cosine" if settings.schedule == "cosine" else "constant_with_warmup"
    return optimizer, get_scheduler(name, optimizer, settings.warmup_steps, steps)


def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU. Names that share memory (a tied head) share it in the copy too."""
    copies: dict[tuple[Any, ...], torch.Tensor] = {}
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if key not in copies:
            copies[key] = tensor.to("cpu", copy=True)
        result[name] = copies[key]
    return result


def take_state(weights: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer, scheduler: Any) -> TrainerState:
    """Copy the state of a loop that trains `weights`."""
    living, numbers = _living(weights, optimizer, scheduler)
    return TrainerState(copied(living), numbers)


def _living(
    weights: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer, scheduler: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state's tensors, not copied, and a copy of its numbers."""
    state = optimizer.state_dict()
    tensors = {f"weights.{name}": tensor.detach() for name, tensor in weights.items()}
    for index, values in state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    # Through JSON and back: the dictionaries are the living ones.
    numbers = {"param_groups": state["param_groups"], "scheduler": scheduler.state_dict()}
    return tensors, json.loads(json.dumps(numbers))


def restore_state(
    state: TrainerState, weights: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer, scheduler: Any
) -> None:
    """Take over `state`, in place. Raises ValueError when it holds other weights."""
    _same_weights(_below(state.tensors, "weights."), weights)
    with torch.no_grad():
        for name, value in _below(state.tensors, "weights.").items():
            weights[name].copy_(value)
    values: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _below(state.tensors, "optimizer.").items():
        index, _, field = name.partition(".")
        values.setdefault(int(index), {})[field] = tensor
    optimizer.load_state_dict({"state": values, "param_groups": state.numbers["param_groups"]})
    scheduler.load_state_dict(state.numbers["scheduler"])
    torch.set_rng_state(state.tensors["rng.cpu"])
    if "rng.cuda" in state.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(state.tensors["rng.cuda"])


def _same_weights(saved: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    if saved.keys() != weights.keys():
        name = sorted(saved.keys() ^ weights.keys())[0]
        raise ValueError(f"the checkpoint and the model do not have the same weights (one has {name!r})")


def write_shards(
    workers: Workers,
    weights: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    folder: Path,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write this worker's part of a sharded state into `folder`, and from rank 0 the numbers, with `more`; all workers
    call it. Raises OSError on all of them where the disk of one is full."""
    tensors, numbers = _living(weights, optimizer, scheduler)
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder / SHARDS), save_distributed=True))
    except CheckpointException as failed:  # every worker is told of each one's failure
        full = [rank for rank, (error, _) in failed.failures.items() if is_full(error, folder)]
        if full:
            raise OSError(errno.ENOSPC, f"no space left for the part of rank {full[0]}", str(folder)) from failed
        raise RuntimeError(f"{folder}: {_first(failed)}") from failed
    numbers |= more or {}
    workers.first_does(lambda: when_there_is_room(folder, lambda: write_numbers(numbers, folder)), folder)


def _first(failed: CheckpointException) -> str:
    rank, (error, _) = min(failed.failures.items(), key=lambda item: item[0])
    return f"rank {rank} failed: {type(error).__name__}: {error}"


def load_state(
    folder: Path, weights: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer, scheduler: Any
) -> dict[str, Any]:
    """Take over the state in `folder`, in place, whatever number of workers wrote it; all workers call it. Returns its
    numbers. Raises ValueError when it holds other weights.
    """
    shards, cut = folder / SHARDS, any(isinstance(weight, DTensor) for weight in weights.values())
    if not shards.is_dir() and not cut:
        state = read_state(folder)
    else:
        state = TrainerState(_read_parts(shards if shards.is_dir() else folder, weights), read_numbers(folder))
    restore_state(state, weights, optimizer, scheduler)
    return state.numbers


def _read_parts(folder: Path, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This worker's part of every tensor below `folder`; the weights are filled in place."""
    reader = HuggingFaceStorageReader(str(folder))
    found = reader.read_metadata().state_dict_metadata
    _same_weights(_below(found, "weights."), weights)
    tensors: dict[str, torch.Tensor] = {f"weights.{name}": weight.detach() for name, weight in weights.items()}
    by_index = list(weights.values())
    for name, facts in found.items():
        if name not in tensors:
            index = name.split(".")[1]
            like = by_index[int(index)] if name.startswith("optimizer.") else None
            same = like is not None and facts.size == like.shape
            tensors[name] = torch.zeros_like(like) if same else torch.zeros(facts.size, dtype=facts.properties.dtype)
    try:
        dcp.load(tensors, storage_reader=reader)
    except CheckpointException as failed:
        raise ValueError(f"the checkpoint {folder} cannot be read: {_first(failed)}") from failed
    return tensors


def _below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def write_state(state: TrainerState, folder: Path) -> None:
    """Write state.safetensors and state.json."""
    save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, folder / TENSORS)
    write_numbers(state.numbers, folder)


def write_numbers(numbers: Mapping[str, Any], folder: Path) -> None:
    """Write state.json."""
    (folder / NUMBERS).write_text(json.dumps(numbers), encoding="utf-8")


def read_numbers(folder: Path) -> dict[str, Any]:
    """What `write_numbers` wrote."""
    numbers: dict[str, Any] = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
    return numbers


def read_state(folder: Path) -> TrainerState:
    """The state that `write_state` wrote."""
    return TrainerState(load_file(folder / TENSORS), read_numbers(folder))
