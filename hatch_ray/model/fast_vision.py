"""A faster image encoder on CPU with the same result (to float rounding); the families are alike in what is replaced.

transformers calls the attention once an image and layer, and embeds patches by a convolution whose kernel is the whole
patch; at 64 patches an image the calls and the convolution cost more than the products.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

CPU = torch.device("cpu")


def speed_up_vision(model: Any, device: torch.device = CPU) -> None:
    """On CPU, windows of equal size attend together (others as before), and patches are embedded by a matrix product.
    Elsewhere the model stays as it is.
    """
    if device.type != "cpu":
        return
    model.model.visual.patch_embed.forward = functools.partial(_embed, model.model.visual.patch_embed)
    for block in model.model.visual.blocks:
        block.attn.forward = functools.partial(_attend, block.attn, type(block.attn).forward)


def _embed(patch_embed: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """(N, channels * time * height * width) -> (N, width)."""
    weight = patch_embed.proj.weight
    return nn.functional.linear(pixels.to(weight.dtype), weight.flatten(1), patch_embed.proj.bias)


def _attend(
    attention: nn.Module,
    original: Any,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **kwargs: Any,
) -> torch.Tensor:
    """hidden_states (N, width) of all windows in a row."""
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    if not bool((lengths == lengths[0]).all()):
        result: torch.Tensor = original(attention, hidden_states, cu_seqlens, position_embeddings, **kwargs)
        return result
    n, windows = len(hidden_states), len(lengths)
    query, key, value = attention.qkv(hidden_states).reshape(n, 3, attention.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)

    def by_head(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(windows, n // windows, attention.num_heads, -1).transpose(1, 2)

    weights = (by_head(query) @ by_head(key).transpose(2, 3) * attention.scaling).softmax(dim=-1)
    mixed = (weights @ by_head(value)).transpose(1, 2).reshape(n, -1)
    projected: torch.Tensor = attention.proj(mixed)
    return projected
