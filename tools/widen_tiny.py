"""A wider hatch-tiny that says what the narrow one said, and then its key-value heads grouped.

`widen` keeps the function to rounding: the residual stream gets dimensions that nothing writes to yet, the inner layers
neurons that write nothing, the language model query heads whose output is not used. `group_heads` makes pairs of query
heads share a key-value head, which no choice of weights can do without a loss: it takes the layers' cheapest way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from tools.tiny import TinyConfig, initialise

WIDE = TinyConfig(text_width=256, text_heads=4, kv_heads=4)
"""Four heads of 64 in a stream of 256: the least that halves, with heads of vLLM's width."""


WRITERS = ("embed_tokens.weight", "merger.mlp.2.weight", "merger.mlp.2.bias", "o_proj.weight", "down_proj.weight")
"""What writes into the stream; inputs of the last two are heads and neurons: the new ones write nothing."""


def widen(
    narrow: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    wide: TinyConfig = WIDE,
    seed: int = 0,
) -> Qwen2_5_VLForConditionalGeneration:
    """A model of the wide sizes whose logits are the narrow one's; the encoder keeps its own sizes.

    New rows (what writes into the stream) are zero, new columns (what reads from it) random. Raises ValueError where a
    wide size is smaller than the narrow one.
    """
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(wide.qwen(tokenizer)).float()
    initialise(model.model.language_model, wide.text_layers)
    old_width, width = narrow.config.text_config.hidden_size, wide.text_width
    target, source = model.state_dict(), narrow.state_dict()
    for name, new in target.items():
        old = source[name].float()
        if any(a < b for a, b in zip(new.shape, old.shape, strict=True)):
            raise ValueError(f"{name}: {tuple(new.shape)} is smaller than {tuple(old.shape)}")
        if name.endswith(WRITERS):
            new.zero_()
        if name.endswith("norm.weight") and "language_model" in name:
            # The mean square is taken over more dimensions, of which the new ones are zero.
            new.fill_(float(old.mean()))
            new[: old.shape[0]] = old
            new *= math.sqrt(old_width / width)
            continue
        new[tuple(slice(0, size) for size in old.shape)] = old
    model.load_state_dict(target)
    model.model.language_model.config.rms_norm_eps = narrow.config.text_config.rms_norm_eps
    model.generation_config = narrow.generation_config
    return model


def group_heads(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    wide: TinyConfig,
    kept: int,
    loss: Callable[[Qwen2_5_VLForConditionalGeneration], float],
) -> tuple[Qwen2_5_VLForConditionalGeneration, list[tuple[int, ...]]]:
    """The model with two query heads a key-value head, and for each layer the order of its heads.

    The first `kept` heads are in use. Layer by layer, each way to put them into groups is tried with the loss; a group
    takes the key and value head of its first. An unused query head may thereby end in any group.
    """
    heads, width = wide.text_heads, wide.text_width // wide.text_heads
    groups = heads // 2
    orders = [
        order
        for order in permutations(range(heads))
        if all(order[2 * group] < kept for group in range(groups)) and order[0] < order[2]
    ]
    chosen: list[tuple[int, ...]] = []
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        before = {name: value.clone() for name, value in attention.state_dict().items()}
        found: list[tuple[float, tuple[int, ...]]] = []
        for order in orders:
            _reorder(attention, before, order, width)
            found.append((loss(model), order))
        _, best = min(found)
        _reorder(attention, before, best, width)
        chosen.append(best)
    grouped = Qwen2_5_VLForConditionalGeneration(replace(wide, kv_heads=groups).qwen(tokenizer)).float()
    state = model.state_dict()
    for name, new in grouped.state_dict().items():
        old = state[name]
        if "language_model" in name and (".k_proj." in name or ".v_proj." in name):
            old = old.unflatten(0, (heads, width))[::2].flatten(0, 1)
        new.copy_(old)
    grouped.generation_config = model.generation_config
    return grouped, chosen


def _reorder(attention: nn.Module, before: dict[str, torch.Tensor], order: tuple[int, ...], width: int) -> None:
    """Query heads in this order, each with the key and value head of its group's first."""
    by_head = torch.tensor(order)
    first = by_head[(torch.arange(len(order)) // 2) * 2]
    for name, value in attention.state_dict().items():
        old = before[name]
        if name == "o_proj.weight":
            value.copy_(old.unflatten(1, (-1, width))[:, by_head].flatten(1, 2))
        else:
            heads = by_head if name.startswith("q_proj") else first
            value.copy_(old.unflatten(0, (-1, width))[heads].flatten(0, 1))
