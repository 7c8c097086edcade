"""A wider hatch-tiny that says what the narrow one said, and then its key-value heads grouped.

`widen` keeps the function to rounding: the residual stream gets dimensions that nothing writes to yet, the inner layers
neurons that write nothing, the language model query heads whose output is not used. `group_heads` makes pairs of query
heads share a key-value head, which no choice of weights can do without a loss: it takes the layers' cheapest way.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from hatch_ray.model.fast_vision import speed_up_vision
from tools.pretrain_mark_heads import forward
from tools.pretrain_packing import Packer, draw_questions, draw_views
from tools.pretrain_spots import SpotSet
from tools.pretraining import patchify, report
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


def start_wide(
    base: Path, views: SpotSet, rows: int, out: Path
) -> tuple[Qwen2_5_VLForConditionalGeneration, PreTrainedTokenizerFast]:
    """The model of a folder, made wider and its key-value heads grouped; what that did to its answers is reported.

    A model that is wide already stays as it is.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    narrow = Qwen2_5_VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    if narrow.config.text_config.hidden_size == WIDE.text_width:
        return narrow, tokenizer
    packer, rng = Packer(tokenizer), random.Random(4)
    drawn = [draw_views(views, 2, rng) for _ in range(rows)]
    batch = packer.pack([draw_questions(views, room, seen, 8, 0.6, rng) for room, seen in drawn], 2)
    pixels = patchify(np.concatenate([views.rgb[room, list(seen)] for room, seen in drawn]))
    keep = batch["labels"][:, 1:] != -100

    @torch.no_grad()
    def logits(model: Qwen2_5_VLForConditionalGeneration) -> torch.Tensor:
        speed_up_vision(model)
        last, *_ = forward(model.eval(), batch, pixels, views.size)
        result: torch.Tensor = model.lm_head(last[:, :-1][keep])
        return result

    def loss(model: Qwen2_5_VLForConditionalGeneration) -> float:
        return float(nn.functional.cross_entropy(logits(model), batch["labels"][:, 1:][keep]))

    wide = widen(narrow, tokenizer)
    away = float((logits(wide) - logits(narrow)).abs().max())
    row = {"stage": "widen", "logits_away": away, "loss_before": loss(narrow), "loss_wide": loss(wide)}
    kept = narrow.config.text_config.num_attention_heads
    grouped, orders = group_heads(wide, tokenizer, WIDE, kept, loss)
    report(out, row | {"loss_grouped": loss(grouped), "heads": orders})
    return grouped, tokenizer
