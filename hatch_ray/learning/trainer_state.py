"""What a training loop needs to go on exactly where it was: weights, optimizer, schedule, random generators.

On disk state.safetensors and state.json: nothing in them can run code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import get_scheduler

from hatch_ray.config_sections import Trained

TENSORS = "state.safetensors"
NUMBERS = "state.json"


@dataclass(frozen=True)
class TrainerState:
    """A copy on the CPU, which later steps do not change.

    tensors   "weights.NAME", "optimizer.INDEX.NAME", "rng.cpu", "rng.cuda".
    numbers   "param_groups" of the optimizer, "scheduler".
    """

    tensors: dict[str, torch.Tensor]
    numbers: dict[str, Any]


def in_parallel(scorer: nn.Module) -> DistributedDataParallel:
    """Gradients summed over the workers; the buckets that travel are the gradients, not copies."""
    return DistributedDataParallel(scorer, broadcast_buffers=False, gradient_as_bucket_view=True)


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
    state = optimizer.state_dict()
    tensors = {f"weights.{name}": tensor for name, tensor in weights.items()}
    for index, values in state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    # Through JSON and back: the dictionaries are the living ones.
    numbers = {"param_groups": state["param_groups"], "scheduler": scheduler.state_dict()}
    return TrainerState(copied(tensors), json.loads(json.dumps(numbers)))


def restore_state(
    state: TrainerState, weights: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer, scheduler: Any
) -> None:
    """Take over `state`, in place. Raises ValueError when it holds other weights."""
    saved = _below(state.tensors, "weights.")
    if saved.keys() != weights.keys():
        name = sorted(saved.keys() ^ weights.keys())[0]
        raise ValueError(f"the checkpoint and the model do not have the same weights (one has {name!r})")
    with torch.no_grad():
        for name, value in saved.items():
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


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def write_state(state: TrainerState, folder: Path) -> None:
    """Write state.safetensors and state.json."""
    save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, folder / TENSORS)
    (folder / NUMBERS).write_text(json.dumps(state.numbers), encoding="utf-8")


def read_state(folder: Path) -> TrainerState:
    """The state that `write_state` wrote."""
    numbers = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
    return TrainerState(load_file(folder / TENSORS), numbers)
