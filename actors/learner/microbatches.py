"""A shard cut into what the learner computes in one pass: whole groups, or parts of one, up to a token budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from actors.runtime.messages import Group, Reply
from hatch_ray.model.prompt_tokens import Prompt

PATCHES_PER_TOKEN = 4
"""Patches that the encoder's merger makes one token of."""


@dataclass(frozen=True)
class Row:
    """Some replies of one group, as they enter a forward pass: prompt, replies, their advantages."""

    prompt: Prompt
    replies: tuple[Reply, ...]
    advantages: tuple[float, ...]


def split_rows(
    prompts: Sequence[Prompt], groups: Sequence[Group], token_budget: int, shared: bool = True
) -> list[list[Row]]:
    """Batches of at most `token_budget` tokens: whole groups, as many as fit; a group that alone is longer is cut into
    parts that fit, each with the prompt again and at least one reply. shared=False counts a prompt for every reply.

    The image encoder's work on an image's patches counts as much as the image's tokens do, once for each image.

    Attention pads to the longest prompt and reply of a batch, so a batch is also full when its replies would hold more
    than G times as many padded keys as it may have tokens: one long prompt takes few short ones along.
    """
    batches: list[list[Row]] = []
    for prompt, group in zip(prompts, groups, strict=True):
        size = len(group.rollout.replies)
        for row in _parts(prompt, group, token_budget, shared):
            joined = [*batches[-1], row] if batches else [row]
            fits = sum(row_tokens(r, shared) for r in joined) + encoded_tokens(joined) <= token_budget
            if not batches or not fits or padded_keys(joined) > size * token_budget:
                batches.append([])
            batches[-1].append(row)
    return batches


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
