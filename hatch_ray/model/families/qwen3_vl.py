"""Qwen3-VL: whole images in every block of the encoder, positions learned on a square grid, queries and keys normed,
and DeepStack (arXiv 2406.04334): the outputs of some blocks, each through a merger of its own, are added to the image
tokens' hidden states after the first language layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hatch_ray.model.families.family import Family, Json, Tensors, attention, gated_mlp, kv_heads, linear

if TYPE_CHECKING:
    import torch


def _published(
    wide: int, layers: int, heads: int, inner: int, tied: bool, depth: int, eye: int, eye_inner: int, deep: list[int]
) -> Json:
    """A config.json as the published models have it."""
    text = {"hidden_size": wide, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8,
            "head_dim": 128, "intermediate_size": inner, "vocab_size": 151936}  # fmt: skip
    vision = {"depth": depth, "hidden_size": eye, "intermediate_size": eye_inner, "num_heads": 16,
              "num_position_embeddings": 2304, "out_hidden_size": wide, "deepstack_visual_indexes": deep}  # fmt: skip
    return {"model_type": "qwen3_vl", "tie_word_embeddings": tied, "text_config": text, "vision_config": vision}


class Qwen3VL(Family):
    """`transformers.models.qwen3_vl` (the dense models)."""

    kind = "qwen3_vl"
    name = "Qwen3-VL"
    patch = 16
    published: ClassVar[Mapping[str, Json]] = {
        "Qwen/Qwen3-VL-2B-Instruct": _published(2048, 28, 16, 6144, True, 24, 1024, 4096, [5, 11, 17]),
        "Qwen/Qwen3-VL-4B-Instruct": _published(2560, 36, 32, 9728, True, 24, 1024, 4096, [5, 11, 17]),
        "Qwen/Qwen3-VL-8B-Instruct": _published(4096, 36, 32, 12288, False, 27, 1152, 4304, [8, 16, 24]),
        "Qwen/Qwen3-VL-32B-Instruct": _published(5120, 64, 64, 25600, False, 27, 1152, 4304, [8, 16, 24]),
    }

    def layer(self, text: Json) -> Tensors:
        wide, head = int(text["hidden_size"]), int(text["head_dim"])
        queries, keys = (head * count for count in (int(text["num_attention_heads"]), kv_heads(text)))
        return (
            attention(wide, queries, keys, bias=False)
            | {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
            | gated_mlp(wide, int(text["intermediate_size"]), bias=False)
            | {"input_layernorm.weight": (wide,), "post_attention_layernorm.weight": (wide,)}
        )

    def block(self, vision: Json) -> Tensors:
        eye, inner = int(vision["hidden_size"]), int(vision["intermediate_size"])
        return (
            linear("attn.qkv", 3 * eye, eye)
            | linear("attn.proj", eye, eye)
            | linear("mlp.linear_fc1", inner, eye)
            | linear("mlp.linear_fc2", eye, inner)
            | _norm("norm1", eye)
            | _norm("norm2", eye)
        )

    def around(self, vision: Json) -> Tensors:
        eye = int(vision["hidden_size"])
        merged, wide = eye * self.patches_per_token(vision), int(vision["out_hidden_size"])
        found: Tensors = {
            "patch_embed.proj.weight": (eye, *self.patch_shape(vision)),
            "patch_embed.proj.bias": (eye,),
            "pos_embed.weight": (int(vision["num_position_embeddings"]), eye),
        }
        found |= _norm("merger.norm", eye)
        deep = [f"deepstack_merger_list.{number}" for number in range(len(vision["deepstack_visual_indexes"]))]
        for merger in ("merger", *deep):
            found |= linear(f"{merger}.linear_fc1", merged, merged) | linear(f"{merger}.linear_fc2", wide, merged)
        for merger in deep:  # their norm comes after four patches have become one
            found |= _norm(f"{merger}.norm", merged)
        return found

    def particulars(self, text: Json, vision: Json) -> dict[str, Any]:
        return {
            "head": int(text["head_dim"]),
            "full": int(vision["depth"]),
            "window": 1,
            "qk_norm": True,
            "gated_eye": False,
            "mergers": 1 + len(vision["deepstack_visual_indexes"]),
        }

    def encode(self, visual: Any, pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        from torch import cat

        found = visual(pixels, grid_thw=grids)
        return cat([found.pooler_output, *found.deepstack_features], dim=-1)

    def deeper(self, where: torch.Tensor, levels: list[torch.Tensor]) -> dict[str, Any]:
        return {"visual_pos_masks": where, "deepstack_visual_embeds": levels}


def _norm(name: str, width: int) -> Tensors:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
