"""How a shard is cut: micro-batches, which are what is computed at a time, and the units that they make up.

A micro-batch is some whole groups, up to a token budget, or a part of one group that alone is longer. The parts of one
group are a unit: its prompt is computed once for all of them (`model.kept_prompts`). Workers that share a sharded model
go through units of the same form together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from actors.runtime.messages import Group, Reply
from hatch_ray.learning.workers import Workers
from hatch_ray.model.kept_prompts import KeptPrompts, apart
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.packing import PackedBatch
from hatch_ray.model.prompt_tokens import Prompt

PATCHES_PER_TOKEN = 4
"""Patches that the encoder's merger makes one token of."""


@dataclass(frozen=True)
class Row:
    """Some replies of one group, as they enter a forward pass: prompt, replies, their advantages."""

    prompt: Prompt
    replies: tuple[Reply, ...]
    advantages: tuple[float, ...]


@dataclass(frozen=True)
class Unit:
    """Micro-batches by number, in one pass each. passes: 1, prompts and replies together, or how often replies pass
    after their prompts; more than there are micro-batches where another worker has more."""

    batches: tuple[int, ...]
    passes: int


def split_rows(
    prompts: Sequence[Prompt], groups: Sequence[Group], token_budget: int, shared: bool = True
) -> list[list[Row]]:
    """Batches of at most `token_budget` tokens: whole groups, as many as fit; a group that alone is longer is cut into
    parts that fit beside its prompt, each of at least one reply. shared=False counts a prompt for every reply.

    The image encoder's work on an image's patches counts as much as the image's tokens do, once for each image.

    Attention pads to the longest prompt and reply of a batch, so a batch is also full when its replies would hold more
    than G times as many padded keys as it may have tokens: one long prompt takes few short ones along.
    """
    batches: list[list[Row]] = []
    cut = False  # whether the last batch is a part of a group, which stays alone
    for prompt, group in zip(prompts, groups, strict=True):
        size = len(group.rollout.replies)
        rows = _parts(prompt, group, token_budget, shared)
        part = shared and len(rows) > 1
        for row in rows:
            joined = [*batches[-1], row] if batches else [row]
            fits = sum(row_tokens(r, shared) for r in joined) + encoded_tokens(joined) <= token_budget
            if not batches or part or cut or not fits or padded_keys(joined) > size * token_budget:
                batches.append([])
            batches[-1].append(row)
            cut = part
    return batches


def make_units(batches: Sequence[Sequence[Row]], shared: bool = True) -> list[Unit]:
    """What is computed together of `split_rows`' batches: those that are parts of one group. Most parts first."""
    units: list[list[int]] = []
    for number, batch in enumerate(batches):
        if shared and units and batches[units[-1][-1]][-1].prompt is batch[0].prompt:
            units[-1].append(number)
        else:
            units.append([number])
    return sorted((Unit(tuple(unit), len(unit)) for unit in units), key=lambda unit: unit.passes, reverse=True)


def agreed(units: Sequence[Unit], workers: Workers) -> list[Unit]:
    """The units with as many passes as the worker that needs most, where workers make all passes together."""
    passes = workers.most([unit.passes for unit in units])
    own = [*units, *[Unit((), 0)] * (len(passes) - len(units))]
    return [replace(unit, passes=count) for unit, count in zip(own, passes, strict=True)]


def scored(
    scorer: ReplyScorer, units: Sequence[Unit], packed: Sequence[PackedBatch]
) -> Iterator[tuple[int | None, torch.Tensor, torch.Tensor]]:
    """Each micro-batch's number, log-probabilities (N,) and entropies (N,), unit by unit; number None: a pass that is
    only made because other workers make one. The caller passes backward what it gets before it asks for more.
    """
    for unit in units:
        own = [packed[number] for number in unit.batches]
        batches = own + [min(own or packed, key=size)] * (unit.passes - len(own))
        numbers = [*unit.batches, *[None] * (unit.passes - len(own))]
        if unit.passes == 1:
            yield numbers[0], *scorer(batches[0])
            continue
        rows = [apart(batch) for batch in batches]
        kept = KeptPrompts(scorer.prompts(rows[0][0]))
        for number, (_, replies) in zip(numbers, rows, strict=True):
            yield number, *scorer.replies(replies, kept)
        kept.backward()


def row_tokens(row: Row, shared: bool = True) -> int:
    """Tokens of a row: its prompt once, or once a reply, and its replies."""
    prompts = 1 if shared else len(row.replies)
    return prompts * len(row.prompt.token_ids) + sum(len(reply.token_ids) for reply in row.replies)


def encoded_tokens(rows: Sequence[Row]) -> int:
    """Image tokens that the encoder makes for a batch; an image that is shown several times is encoded once."""
    images = {image.key or id(image): image for row in rows for image in row.prompt.images}
    merged = sum(math.prod(image.grid) for image in images.values())
    return merged // PATCHES_PER_TOKEN


def padded_keys(rows: Sequence[Row]) -> int:
    """Keys that the replies of a batch attend to, all padded to the longest prompt and reply."""
    replies = [reply for row in rows for reply in row.replies]
    longest = max(len(reply.token_ids) for reply in replies)
    return len(replies) * (max(len(row.prompt.token_ids) for row in rows) + longest)


def _parts(prompt: Prompt, group: Group, token_budget: int, shared: bool) -> list[Row]:
    parts: list[list[int]] = []
    room = 0
    for index, reply in enumerate(group.rollout.replies):
        size = len(reply.token_ids) + (0 if shared else len(prompt.token_ids))
        if not parts or size > room:
            parts.append([])
            room = token_budget - (len(prompt.token_ids) if shared else 0)
        parts[-1].append(index)
        room -= size
    replies, advantages = group.rollout.replies, group.advantages
    return [Row(prompt, tuple(replies[i] for i in part), tuple(float(advantages[i]) for i in part)) for part in parts]


def size(batch: PackedBatch) -> int:
    """Tokens of a micro-batch."""
    return batch.input_ids.shape[1]
