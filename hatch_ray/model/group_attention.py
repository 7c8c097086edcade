"""Attention over packed groups: no token meets one that it may not see, and no L x L mask is made.

All tokens of a batch stand in one row without padding, for everything but attention. A group's prompt attends to itself
causally; each of its replies attends to the prompt and causally to itself. Both are one call of PyTorch's scaled
dot-product attention: the prompts side by side, and the replies side by side, each with the keys of its prompt before
its own, padded to the longest of the batch.

A group that is too long for one pass stands in two rows (`kept_prompts`): its prompt, which leaves the keys and values
of each layer, and its replies, some at a time, which attend to those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hatch_ray.model.families import NOT_SHARED, family_of

NAME = "hatch_groups"


class KeysAndValues:
    """by_layer: of the P tokens of prompts in a row, (1, K, P, d) each, keys after their rotation.

    Not a dict or a dataclass: of these FSDP hands copies to a layer.
    """

    def __init__(self, by_layer: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None) -> None:
        self.by_layer = by_layer or {}


@dataclass(frozen=True)
class GroupLayout:
    """Where the tokens of each prompt and reply stand in a row of T tokens; NG groups, N replies, padded to Pm and Rm.

    prompt_index (NG, Pm) and reply_index (N, Rm): places in the row, 0 where there is only padding; group (N,): the
    group of each reply; place (T,): where each token of the row lies among the flattened prompts and replies; mask
    (N or 1, 1, Rm, Pm + Rm) bool: which keys (the prompt's, then its own) a reply's token sees.
    """

    prompt_index: torch.Tensor
    reply_index: torch.Tensor
    group: torch.Tensor
    place: torch.Tensor
    mask: torch.Tensor

    def to(self, device: torch.device | str) -> GroupLayout:
        return GroupLayout(**{name: tensor.to(device) for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class PromptLayout:
    """A row of prompts alone. A forward pass fills `kept`; one that computes a layer again leaves it as it is."""

    prompt_index: torch.Tensor
    place: torch.Tensor
    kept: KeysAndValues


@dataclass(frozen=True)
class ReplyLayout:
    """A row of replies alone, whose prompts' keys and values are `kept`. prompt_index: places in the prompts' row."""

    prompt_index: torch.Tensor
    reply_index: torch.Tensor
    group: torch.Tensor
    place: torch.Tensor
    mask: torch.Tensor
    kept: KeysAndValues


Layout = GroupLayout | PromptLayout | ReplyLayout


def make_layout(prompt_lengths: Sequence[int], reply_lengths: Sequence[Sequence[int]]) -> GroupLayout:
    """The layout of groups that stand in the row one after the other, each its prompt and then its replies."""
    replies = [length for lengths in reply_lengths for length in lengths]
    p_max, r_max = max(prompt_lengths), max(replies)
    prompt_index = torch.zeros(len(prompt_lengths), p_max, dtype=torch.long)
    reply_index = torch.zeros(len(replies), r_max, dtype=torch.long)
    group, place = [], []
    start, number = 0, 0
    for index, (p, lengths) in enumerate(zip(prompt_lengths, reply_lengths, strict=True)):
        prompt_index[index, :p] = torch.arange(start, start + p)
        place.append(index * p_max + torch.arange(p))
        start += p
        for r in lengths:
            reply_index[number, :r] = torch.arange(start, start + r)
            place.append(len(prompt_lengths) * p_max + number * r_max + torch.arange(r))
            group.append(index)
            start, number = start + r, number + 1
    group_N = torch.tensor(group)
    sizes_N = torch.tensor(prompt_lengths)[group_N]
    if len(set(prompt_lengths)) == 1:
        sizes_N = sizes_N[:1]
    seen = (torch.arange(p_max) < sizes_N[:, None])[:, None, None, :].expand(-1, 1, r_max, -1)
    own = torch.ones(r_max, r_max, dtype=torch.bool).tril().expand(len(sizes_N), 1, -1, -1)
    return GroupLayout(prompt_index, reply_index, group_N, torch.cat(place), torch.cat([seen, own], dim=-1))


def separate_rows(layout: GroupLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """For groups of one reply each: the places of each one's tokens, (NG, longest), and which of these it has, padded
    at the end. The tokens that are there come in the packed row's order. Raises ValueError for a group of several.
    """
    if len(layout.group) != len(layout.prompt_index):
        raise ValueError(f"the model has {NOT_SHARED}")
    starts = layout.prompt_index[:, 0]
    lengths = torch.diff(starts, append=starts.new_tensor([len(layout.place)]))
    steps = torch.arange(int(lengths.max()), device=starts.device)
    return (starts[:, None] + steps).clamp(max=len(layout.place) - 1), steps < lengths[:, None]


def group_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float,
    layer: int = 0,
) -> torch.Tensor:
    """query (1, H, T, d), key and value (1, K, T, d) with K dividing H -> (1, T, H, d). layer: its number."""
    heads, kv_heads = query.shape[1], key.shape[1]
    parts = []

    def take(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return tensor[0].transpose(0, 1)[index].transpose(1, 2)  # (sequences, heads, length, d)

    def widen(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.repeat_interleave(heads // kv_heads, dim=1)

    prompts_key, prompts_value = layout.kept.by_layer[layer] if isinstance(layout, ReplyLayout) else (key, value)
    prompt_keys, prompt_values = (take(tensor, layout.prompt_index) for tensor in (prompts_key, prompts_value))
    if not isinstance(layout, ReplyLayout):
        queries = take(query, layout.prompt_index)
        parts.append(
            scaled_dot_product_attention(
                queries, widen(prompt_keys), widen(prompt_values), is_causal=True, scale=scaling
            )
        )
    if isinstance(layout, PromptLayout):
        if layer not in layout.kept.by_layer:
            layout.kept.by_layer[layer] = key, value.clone()  # a view would lose FSDP's hooks
    else:
        keys = torch.cat([prompt_keys[layout.group], take(key, layout.reply_index)], dim=2)
        values = torch.cat([prompt_values[layout.group], take(value, layout.reply_index)], dim=2)
        queries = take(query, layout.reply_index)
        parts.append(
            scaled_dot_product_attention(queries, widen(keys), widen(values), attn_mask=layout.mask, scale=scaling)
        )
    flat = torch.cat([part.transpose(1, 2).reshape(-1, heads, part.shape[-1]) for part in parts])
    return flat[layout.place][None]


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    layout: Layout | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: with a layout, which the model hands down, packed groups; else plain SDPA."""
    if layout is not None:
        return group_attention(query, key, value, layout, scaling, int(module.layer_idx)), None  # type: ignore[arg-type]
    plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **settings
    )
    return plain


def use_group_attention(model: nn.Module) -> None:
    """Let the language model attend by `attention_forward`; one that cannot share prefixes stays as it is."""
    config = model.model.language_model.config
    if not family_of(model.config).shares_prefixes(vars(config)):
        return
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME
