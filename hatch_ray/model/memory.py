"""How much memory each stage and role takes, share by share, before anything is loaded. Imports no torch.

A learner's worker holds some shares always (weights, gradients, moments, reference) and others for a moment: while the
head is at work, while a layer or the embedding is passed backward, while the optimizer steps, while a version is
copied for the engines. It needs what it always holds and the fullest moment. docs/memory.md has the equations;
tests/model/test_memory.py compares them with what torch allocates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hatch_ray.model.activations import (
    FLOAT,
    Numbers,
    Pass,
    Row,
    Trainable,
    square_grid,
    vision_pass,
    whole_pass,
)
from hatch_ray.model.shapes import Shapes
from hatch_ray.model.size import shapes_of
from hatch_ray.systems import load_system

if TYPE_CHECKING:
    from hatch_ray.config import Config

GB = 1e9
BYTES = {"float32": 4, "bfloat16": 2}
ADAM_MOMENTS = 2
LIVE_VERSIONS = 2
"""Copies that a learner which sends by NIXL holds: the version that engines may still read, and the next one."""
LIBRARIES_GB = 1.0
"""CUDA's context, kernels and workspaces of a process on a GPU; assumed, not measured."""
KEPT_FEATURES = 256 * 2**20
"""`model.image_features.KEPT_BYTES`, which imports torch; a test compares them."""
GRADIENTS, ASKING, SENDING = "gradients", "asking the reference", "sending weights"
BETWEEN_STEPS = (ASKING, SENDING)
DIVIDE = "divide it by learner.sharding=full over more learner.workers"


@dataclass(frozen=True)
class Share:
    """What something takes, bytes, and what a user can do to lower it."""

    name: str
    bytes: float
    lower: str = ""

    @property
    def gb(self) -> float:
        return self.bytes / GB


def gb_text(gb: float) -> str:
    """Three digits: 15.0, 0.133, 133; 4,195."""
    return f"{gb:,.0f}" if gb >= 100 else f"{gb:#.3g}"


def largest(shares: Iterable[Share], count: int = 3) -> str:
    """The largest shares in words, each with what lowers it."""
    first = sorted(shares, key=lambda share: share.bytes, reverse=True)[:count]
    return "; ".join(f"{s.name} {gb_text(s.gb)} GB" + (f" ({s.lower})" if s.lower else "") for s in first)


@dataclass(frozen=True)
class Footprint:
    """The memory of one process. moments: what comes on top of `always`, one of them at a time; gradients are not
    there BETWEEN_STEPS."""

    always: tuple[Share, ...]
    moments: Mapping[str, tuple[Share, ...]]

    @property
    def fullest(self) -> str:
        """The moment that takes most."""
        return max(self.moments, key=lambda name: sum(share.bytes for share in self._at(name)))

    @property
    def shares(self) -> list[Share]:
        """What there is at the fullest moment; nothing that is nothing."""
        return [share for share in self._at(self.fullest) if share.bytes]

    def _at(self, moment: str) -> list[Share]:
        held = [share for share in self.always if share.name != GRADIENTS or moment not in BETWEEN_STEPS]
        return [*held, *self.moments[moment]]

    @property
    def gb(self) -> float:
        return sum(share.bytes for share in self.shares) / GB


def stage_kind(config: Config, stage: str) -> str:
    """pasta, sft or grpo."""
    return next(one.kind for one in load_system(config.system).stages if one.name == stage)


def workers_used(config: Config, stage: str) -> int:
    """Workers that a stage uses: the most that share its batch evenly."""
    workers = config.learner.workers
    return workers if stage_kind(config, stage) == "grpo" else math.gcd(config.settings(stage).batch_size, workers)


def recomputes(config: Config) -> bool:
    """Whether layers compute their activations again (learner.recompute; None: on GPUs)."""
    wanted = config.learner.recompute
    return config.learner.gpus > 0 if wanted is None else wanted


def largest_rows(config: Config, stage: str, shapes: Shapes) -> list[Row]:
    """The largest passes that the settings allow: one with a prompt as long as may be, one with replies so long."""
    model, grpo = config.model, config.grpo
    grid = square_grid(max(shapes.patches(model.max_pixels), shapes.merge**2), shapes.merge)
    tokens = grid[0] * grid[1] // shapes.merge**2
    kind = stage_kind(config, stage)
    mine = config.settings(stage).batch_size // workers_used(config, stage)
    if kind == "pasta":
        return [Row(0, 0, 0, 0, 2 * mine, grid)]
    reply = min(grpo.max_new_tokens, model.max_length // 2)
    longest = model.max_length - reply
    images = max(1, min(model.max_images, longest // tokens))
    if kind == "sft":
        return [Row(mine, longest, mine, reply, mine * images, grid, unequal=mine > 1)]
    return [_grpo_row(config, prompt, reply, images, grid) for prompt in dict.fromkeys((longest, images * tokens))]


def _grpo_row(config: Config, prompt: int, reply: int, images: int, grid: tuple[int, int]) -> Row:
    grpo = config.grpo
    groups, size = grpo.prompts_per_step // config.learner.workers, grpo.group_size
    if not grpo.shared_prefix:
        rows = max(1, min(groups * size, grpo.token_budget // (prompt + reply)))
        return Row(rows, prompt, rows, reply, rows * images, grid, unequal=rows > 1)
    whole = min(groups, grpo.token_budget // (prompt + size * reply))
    if whole:
        return Row(whole, prompt, whole * size, reply, whole * images, grid, unequal=whole > 1)
    room = max(grpo.token_budget - prompt, reply)
    replies, each = (size, max(1, room // size)) if room >= size else (1, reply)
    return Row(1, prompt, replies, each, images, grid, part=True)


def divided_by(config: Config, stage: str) -> int:
    """Workers that divide a stage's weights, gradients and moments among them (learner.sharding). hybrid: those of one
    node (learner.workers_per_node; a worker that comes up with another number ends the run)."""
    workers, learner = workers_used(config, stage), config.learner
    return {"none": 1, "full": workers, "hybrid": min(workers, learner.workers_per_node)}[learner.sharding]


def trained_part(config: Config, stage: str) -> Trainable:
    """What learns in a stage, adapters left out."""
    part: Trainable = config.settings(stage).trainable
    return "vision" if stage_kind(config, stage) == "pasta" else part


def learner_memory(config: Config, stage: str) -> Footprint:
    """One worker of a stage, on its GPU (learner.gpus > 0) or in its process."""
    shapes = shapes_of(config.model.base)
    return max(
        (_learner(config, stage, shapes, row) for row in largest_rows(config, stage, shapes)),
        key=lambda footprint: footprint.gb,
    )


def _learner(config: Config, stage: str, shapes: Shapes, row: Row) -> Footprint:
    learner, kind = config.learner, stage_kind(config, stage)
    shards, trainable = divided_by(config, stage), trained_part(config, stage)
    gpu, lora = learner.gpus > 0, config.model.lora_rank if kind != "pasta" else 0
    c, master = BYTES[learner.compute], BYTES[learner.master]
    weight = c if lora else master
    there = shapes.vision if kind == "pasta" else shapes.parameters
    learning = shapes.adapters(lora) if lora else shapes.part(trainable)
    each = FLOAT if lora else master
    frozen_vision = 0 if kind == "pasta" or (not lora and trainable != "language") else shapes.vision
    lower = f"set model.lora_rank, or {DIVIDE}"
    held = weight * ((there - frozen_vision) / shards + frozen_vision) + (each * learning / shards if lora else 0)
    always = [
        Share("weights", held, lower),
        Share(GRADIENTS, each * learning / shards, lower),
        Share("AdamW's moments", ADAM_MOMENTS * each * learning / shards, lower),
    ]
    asked = kind == "grpo" and config.grpo.beta and not lora
    reference = c * (shapes.language / shards + shapes.vision) if asked else 0  # a frozen encoder is not divided
    if reference and not (gpu and learner.offload_reference):
        always.append(Share("reference", reference, "set learner.offload_reference=true, or grpo.beta=0"))
    if frozen_vision:
        always.append(Share("image features kept", KEPT_FEATURES if gpu else 0))
    if kind == "grpo" and config.rollout.weights == "nixl" and shards == 1:
        sent = BYTES[config.rollout.dtype] * _sent(shapes, lora, trainable)
        always.append(Share("versions for NIXL", LIVE_VERSIONS * sent, "set rollout.weights=object_store"))
    if gpu:
        always.append(Share("CUDA and libraries (assumed)", LIBRARIES_GB * GB))
    numbers = Numbers(c, weight, gpu, lora, trainable)
    again = recomputes(config)
    if kind == "pasta":
        passed = vision_pass(shapes, row, numbers, again, alone=True)
    else:
        passed = whole_pass(shapes, row, numbers, again)
    key = "grpo.token_budget" if kind == "grpo" else f"{stage}.batch_size"
    lower = f"lower {key} or model.max_pixels" + ("" if again else ", or set learner.recompute=true")
    moments = pass_moments(shapes, passed, numbers, again, shards, kind == "pasta", lower)
    if not gpu:  # on a GPU it is fused, and makes none
        tensor = shapes.embedding if numbers.language_learns and kind != "pasta" else shapes.merger
        moments["optimizer step"] = (Share("optimizer's temporary", 2 * each * tensor / shards),)
    if reference and gpu and learner.offload_reference and shards == 1:
        moments[ASKING] = (Share("reference", reference, "set grpo.beta=0"), moments["head"][0])
    if kind == "grpo":
        moments[SENDING] = (
            Share("copy for the engines", _copy(config, shapes, lora, trainable, shards), "" if lora else DIVIDE),
        )
    return Footprint(tuple(always), moments)


def pass_moments(
    shapes: Shapes, held: Pass, numbers: Numbers, recompute: bool, shards: int, alone: bool, lower: str
) -> dict[str, tuple[Share, ...]]:
    """The moments of a forward and backward pass, by name. alone: the image encoder without the language model."""
    c = numbers.compute
    embedding = shapes.embedding if numbers.language_learns and not alone else 0
    vision, layer = (shapes.depth * shapes.block + shapes.merger), shapes.layer
    # Autocast: a copy of each weight, kept with the graph; of layers that are computed again while one is at work.
    # Sharded weights are gathered in the compute dtype and need none.
    casts = numbers.weight > c and shards == 1
    head = 0 if alone else shapes.embedding
    language = 0 if alone else (0 if recompute else held.graphs * shapes.layers * layer) + head
    seen = (shapes.merger if recompute else vision) if numbers.vision_learns else 0
    adapters = 0 if recompute or c == FLOAT else held.graphs * shapes.adapters(numbers.lora)
    everything = c * (language + seen if casts else adapters)
    merger = c * (shapes.merger if seen else 0) if casts else 0
    on_the_way = (numbers.weight if shards == 1 else c) * embedding
    waiting = on_the_way if shapes.tied else 0  # the head's part of the tied weight's gradient
    ended: float = (3 if shapes.tied else 1) * on_the_way
    gathered = reduced = 0.0
    if shards > 1:
        root, learned = (count * (1 if shapes.tied else 2) for count in (head, embedding))
        gathered = c * (root + 2 * max(0 if alone else layer, shapes.block, shapes.merger))
        waiting, reduced = on_the_way, (c + FLOAT) * layer
        ended = max(ended, c * learned) + FLOAT * learned * (1 + 1 / shards)  # summed in float32, then divided

    def shares(
        activations: int, working: float, copies: int, logits: int = 0, gradient: float = 0
    ) -> tuple[Share, ...]:
        return (
            Share("activations", activations, lower),
            Share("one layer's work", working, lower),
            Share("logits", logits, lower),
            Share("weights in the compute dtype", copies, f"set learner.recompute=true, or {DIVIDE}"),
            Share("gathered layers", gathered),
            Share("gradients on their way", gradient),
        )

    moments = {}
    if not alone:
        moments["head"] = shares(held.kept, 0, everything, held.logits, on_the_way if shards > 1 else 0)
        own, behind = (c * layer, everything - c * head) if casts else (0, everything)
        inside = held.vision + held.language + held.apart
        moments["layer forward"] = shares(inside, held.language_forward, behind + (own if recompute else 0))
        copies = merger + own if recompute else behind
        # What the head's gradient takes is there while the logits are gone: the larger of them decides.
        moments["layer backward"] = shares(inside, held.language_layer, copies, 0, waiting + reduced)
        moments["embedding backward"] = shares(held.waiting + held.apart, 0, 0, 0, ended)
    if seen:
        own = c * shapes.block if casts else 0
        copies = own if recompute else (c * vision if casts else 0)
        working = held.vision_layer + ((c + FLOAT) * shapes.block if shards > 1 else 0)
        moments["vision backward"] = shares(held.vision - held.merger + held.apart, working, copies, 0, waiting)
    return moments


def _sent(shapes: Shapes, lora: int, trainable: Trainable) -> int:
    """Parameters that a version for the engines holds; a tied head is sent beside the embedding."""
    if lora:
        return shapes.layers * shapes.layer
    return shapes.part(trainable) + (shapes.embedding if shapes.tied and trainable != "vision" else 0)


def _copy(config: Config, shapes: Shapes, lora: int, trainable: Trainable, shards: int) -> float:
    """What making a version takes beside the weights, on the learner's device."""
    to, master = BYTES[config.rollout.dtype], BYTES[config.learner.master]
    if shards > 1:  # gathered one by one
        return FLOAT * shapes.embedding
    one_by_one = config.rollout.weights == "object_store"
    if lora:  # merged in float32 and cast
        widest = shapes.wide * shapes.inner
        return FLOAT * widest + to * (widest if one_by_one else shapes.linear)
    if to == master:
        return 0
    return to * (shapes.embedding if one_by_one else _sent(shapes, lora, trainable))


def host_memory(config: Config, stage: str) -> list[Share]:
    """What a stage's workers hold in all in the machines' memory beside what `learner_memory` counts (there too on
    CPUs): the copies that a checkpoint is written from, the version on its way to the engines (Ray's object store holds
    it once more), PaStA's idle language model.
    """
    shards, part = divided_by(config, stage), trained_part(config, stage)
    shapes, kind, lora = shapes_of(config.model.base), stage_kind(config, stage), config.model.lora_rank
    lora = 0 if kind == "pasta" else lora
    each = FLOAT if lora else BYTES[config.learner.master]
    learning = shapes.adapters(lora) if lora else shapes.part(part)
    state: float = (1 + ADAM_MOMENTS) * each * learning
    if shards > 1:  # every worker writes its part: copied from a GPU, and once more as the bytes of a file
        state *= workers_used(config, stage) / shards * (2 if config.learner.gpus else 1)
    if kind == "grpo":
        state += (FLOAT * shapes.linear + BYTES[config.learner.compute] * (shapes.parameters - shapes.linear)
                  if lora else each * shapes.parameters)  # fmt: skip
    shares = [Share("a checkpoint's copy", state, "set model.lora_rank")]
    if kind == "pasta":
        shares.append(Share("the language model, idle", BYTES[config.learner.master] * shapes.language))
    if kind == "grpo" and (config.rollout.weights == "object_store" or shards > 1):
        copies = LIVE_VERSIONS if config.rollout.weights == "nixl" else 1
        version = copies * BYTES[config.rollout.dtype] * _sent(shapes, lora, part)
        shares.append(Share("version for the engines", version, "set rollout.dtype=bfloat16"))
    return shares


def engine_memory(config: Config) -> Footprint:
    """One vLLM engine, on its GPU or in its process; vLLM's own working memory is not counted."""
    shapes, rollout = shapes_of(config.model.base), config.rollout
    each = BYTES[rollout.dtype]
    always = [Share("weights", each * shapes.parameters, "set rollout.dtype=bfloat16")]
    if rollout.weights == "nixl":
        always.append(Share("next version", each * shapes.parameters, "set rollout.weights=object_store"))
    if rollout.gpus:
        token = 2 * shapes.layers * shapes.kv_heads * shapes.head * each
        cache = Share(
            "keys and values of one longest sequence", token * config.model.max_length, "lower model.max_length"
        )
    else:
        cache = Share("keys and values", rollout.kv_cache_mb * 2**20, "lower rollout.kv_cache_mb")
    return Footprint((*always, cache), {"always": ()})
