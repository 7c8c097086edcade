"""A stage's model on the learner's workers: whole on each (DistributedDataParallel), or in shards (FSDP2).

    none     every worker holds all; gradients are summed over the workers
    full     each of n workers holds 1/n of the weights, gradients and moments; a layer is gathered while it is computed
    hybrid   the same over the workers of one node; nodes hold copies of each other

What a sharded model does is done by all of its workers at once: each forward pass, gathering, saving. Whoever calls
one of these on a single worker waits until its deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.fsdp import register_fsdp_forward_method as gather_for
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_layers import GradientCheckpointingLayer

from hatch_ray.config_sections import LearnerConfig
from hatch_ray.model.base import (
    Part,
    any_learns,
    checksum,
    load_model,
    recompute_activations,
    save_model,
    set_trainable,
    unfilled_model,
)
from hatch_ray.model.fast_vision import speed_up_vision

Found = TypeVar("Found")
CPU = torch.device("cpu")
LOOK_SECONDS = 0.1
BUCKET = 2**24
"""Numbers of gradients that travel at once; a larger one goes alone."""


class Workers:
    """The workers of a stage, as one of them sees them.

    rank, world   this worker's number, and how many there are; torch.distributed runs where there are several.
    per_node      how many there are on each node (hybrid sharding).
    """

    def __init__(
        self, learner: LearnerConfig, device: torch.device = CPU, rank: int = 0, world: int = 1, per_node: int = 0
    ) -> None:
        self.learner, self.device, self.rank, self.world = learner, device, rank, world
        self.sharded = learner.sharding != "none" and world > 1
        self.first = rank == 0
        self._mesh = self._make_mesh(per_node or world) if self.sharded else None

    def _make_mesh(self, per_node: int) -> DeviceMesh:
        if self.learner.sharding == "full":
            return init_device_mesh(self.device.type, (self.world,))
        found: list[int] = [0] * self.world
        distributed.all_gather_object(found, per_node)
        wanted = min(self.world, self.learner.workers_per_node)
        if set(found) != {wanted}:
            raise ValueError(
                f"learner.sharding=hybrid, learner.workers_per_node={self.learner.workers_per_node}: {wanted} of these "
                f"{self.world} workers are needed on every node, and the nodes of each have "
                f"{', '.join(map(str, found))}; set learner.sharding=full, or place them evenly"
            )
        nodes = (self.world // per_node, per_node)
        return init_device_mesh(self.device.type, nodes, mesh_dim_names=("copies", "shards"))

    def load(self, base: str | Path, dtype: str) -> Any:
        """The model; of a sharded one only rank 0 reads the weights, and `wrap` hands them out."""
        if self.sharded:  # on the CPU: a layer moves to its device when it is cut
            model = load_model(base, dtype) if self.first else unfilled_model(base, dtype)
        else:
            model = load_model(base, dtype).to(self.device)
        speed_up_vision(model, self.device)
        return model

    def wrap(self, module: nn.Module, methods: Iterable[str] = ()) -> nn.Module:
        """What is called in place of `module` to train it: the module itself, its parameters now shards, or DDP.

        methods: names of the module's methods that compute with it, beside its forward pass.
        """
        if self.sharded:
            return self.shard(module, methods)
        if self.world > 1:  # the buckets that travel are the gradients, not copies
            return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)
        return module

    def shard(self, module: nn.Module, methods: Iterable[str] = (), offload: bool = False) -> nn.Module:
        """Cut the parameters of layers and vision blocks, and then the rest, in place. A frozen image encoder stays
        whole on each worker: what it makes of an image is kept, so workers do not run it at the same time.

        offload: the shards wait in the CPU's memory.
        """
        if self._mesh is None:
            return module
        weights = dict(module.state_dict()) if self.first else {}
        frozen = [part for part in _encoders(module) if not any_learns(part)]
        stay = {parameter for part in frozen for parameter in part.parameters()}
        inside = {part for encoder in frozen for part in encoder.modules()}
        layers = [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]
        offload = offload and self.device.type != "cpu"
        half = torch.bfloat16 if self.learner.compute == "bfloat16" else None
        settings: dict[str, Any] = {
            "mesh": self._mesh,
            "mp_policy": MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False),
            "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy(),
        }
        for part in [*layers, *_encoders(module)]:
            if part not in inside and part is not module:
                fully_shard(part, **settings)
        # Cut again after each forward pass, also a root's: what is whole then would not follow the optimizer's steps.
        fully_shard(module, ignored_params=stay, reshard_after_forward=True, **settings)
        if not offload:  # weights are handed out to one kind of device
            self._move(frozen)
        for buffer in module.buffers():
            buffer.data = buffer.data.to(self.device)
        for name in methods:
            gather_for(module, name)
        options = StateDictOptions(full_state_dict=True, cpu_offload=offload, broadcast_from_rank0=True)
        set_model_state_dict(module, weights, options=options)
        if offload:
            self._move(frozen)
        return module

    def _move(self, parts: Iterable[nn.Module]) -> None:
        for part in parts:
            part.to(self.device)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the workers, in place."""
        if self.world > 1:
            distributed.all_reduce(tensor)
        return tensor

    def most(self, counts: Sequence[int]) -> list[int]:
        """Place by place the largest of all workers' counts, 0 where one has fewer; of whole copies its own."""
        if not self.sharded:
            return list(counts)
        found: list[Sequence[int]] = [()] * self.world
        distributed.all_gather_object(found, tuple(counts))
        return [max(places) for places in zip_longest(*found, fillvalue=0)]

    @torch.no_grad()
    def start_alike(self, parameters: Iterable[torch.Tensor]) -> None:
        """Let whole copies start from rank 0's values (adapters are random); shards do."""
        if self.world > 1 and not self.sharded:
            for parameter in parameters:
                distributed.broadcast(parameter, 0)

    def average_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Let whole copies have the mean of all workers' gradients; shards have it from their backward passes. A worker
        without a gradient counts as one of zeros."""
        if self.world == 1 or self.sharded:
            return
        for bucket in _buckets(parameters):
            parts = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in bucket]
            flat = parts[0] if len(parts) == 1 else torch.cat(parts)
            distributed.all_reduce(flat)
            flat /= self.world
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter)

    def wait(self) -> None:
        """Until all workers have come here."""
        if self.world > 1:
            distributed.barrier()

    def first_does(self, work: Callable[[], None], folder: Path) -> None:
        """Rank 0 works, for as long as it takes (while the disk is full): the others wait for a file below `folder`,
        which all of them see, and not in a collective, which would give up."""
        if not self.sharded:
            return work() if self.first else None
        done = folder / f".done.{self.agreed(time.time_ns)}"
        if self.first:
            try:
                work()
            finally:
                done.touch()
        while not done.exists():
            time.sleep(LOOK_SECONDS)
        self.wait()
        if self.first:
            done.unlink()
        return None

    def agreed(self, find: Callable[[], Found]) -> Found:
        """What rank 0 finds, on every worker. What it fails with is raised there, and RuntimeError on the others."""
        if self.world == 1:
            return find()
        found: list[Any] = [None, None]
        failure: Exception | None = None
        if self.first:
            try:
                found[0] = find()
            except Exception as error:  # noqa: BLE001 - raised below, when the others know
                failure = error
                found[1] = f"{type(error).__name__}: {error}"
        distributed.broadcast_object_list(found)
        if failure is not None:
            raise failure
        if found[1] is not None:
            raise RuntimeError(f"rank 0 failed: {found[1]}")
        result: Found = found[0]
        return result

    def gathered(
        self, named: Iterable[tuple[str, torch.Tensor]], dtype: str | None = None, cpu: bool = False
    ) -> dict[str, torch.Tensor]:
        """Whole tensors, in another dtype where one is given; of a sharded model on rank 0 alone, in the CPU's memory
        (the others get an empty dict, and hold one tensor at a time). cpu: in the CPU's memory in any case."""
        result = {}
        for name, tensor in named:
            one, found = isinstance(tensor, DTensor), whole(tensor.detach())
            if self.first or not self.sharded:
                found = found if dtype is None else found.to(getattr(torch, dtype))
                result[name] = found.cpu() if one or cpu else found
        return result


def load_learning(workers: Workers, base: str | Path, trainable: Part, lora_rank: int) -> Any:
    """The model that a stage trains, in training mode: what learns is set, or adapters are added, and activations are
    computed again where learner.recompute says so."""
    learner = workers.learner
    model = workers.load(base, learner.compute if lora_rank else learner.master).train()
    set_trainable(model, trainable)
    if lora_rank:
        from hatch_ray.model.lora import add_lora  # peft is loaded by those alone who need it

        add_lora(model, lora_rank)
    recompute_activations(model, learner.recompute, workers.device)
    return model


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may be in shards, as one. All workers call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def frozen_checksum(model: nn.Module, trainable: Part) -> str:
    """Of what does not learn, this worker's part of it; empty where everything learns."""
    if trainable == "all":
        return ""
    frozen = ((name, p.detach()) for name, p in model.named_parameters() if not p.requires_grad)
    return checksum((name, p.to_local() if isinstance(p, DTensor) else p) for name, p in frozen)


def has_adapters(model: nn.Module) -> bool:
    """Whether LoRA's adapters were added."""
    return any(".lora_" in name for name, _ in model.named_parameters())


def final_weights(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    """What a model would be saved as, pair by pair, maybe in shards: its state dict, adapters merged."""
    if not has_adapters(model):
        return model.state_dict().items()
    from hatch_ray.model.lora import merged_weights  # peft is loaded by those alone who need it

    return merged_weights(model)


def save_trained(workers: Workers, model: nn.Module, first: str | Path, master: str, processor: Any, out: Path) -> None:
    """Write a trained model as a Hugging Face folder, from rank 0; of a sharded one all workers call it."""
    weights = workers.gathered(final_weights(model), cpu=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    workers.first_does(lambda: write_weights(weights, model, first, master, processor, out), out.parent)


def write_weights(
    weights: dict[str, torch.Tensor], model: nn.Module, first: str | Path, master: str, processor: Any, out: Path
) -> None:
    """Write weights as a Hugging Face folder: in the form of `model`, or with adapters merged in that of `first`."""
    if has_adapters(model):
        merged = load_model(first, master)
        merged.load_state_dict(weights)
        save_model(merged, processor, out)
    else:
        save_model(model, processor, out, weights)


def _buckets(parameters: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours, of at most BUCKET numbers in all or one alone."""
    bucket: list[torch.Tensor] = []
    for parameter in parameters:
        if bucket and sum(p.numel() for p in bucket) + parameter.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(parameter)
    yield bucket


def _encoders(module: nn.Module) -> list[nn.Module]:
    return [part for name, part in module.named_modules() if name.rpartition(".")[2] == "visual"]
