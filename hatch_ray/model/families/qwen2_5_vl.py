"""Qwen2.5-VL: windows in the image encoder, one level of features, biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from hatch_ray.model.families.family import Family, Json, Tensors, attention, gated_mlp, kv_heads, linear

WINDOW = 112
"""Pixels a side of a window, and below: the blocks that see whole images; where config.json does not say."""
FULL = (7, 15, 23, 31)


def _published(wide: int, layers: int, heads: int, kv: int, inner: int, vocabulary: int, eye_inner: int) -> Json:
    """A config.json as the published models have it: text sizes at the top; the 3B alone has a tied head."""
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": eye_inner, "num_heads": 16,
              "out_hidden_size": wide, "fullatt_block_indexes": [*FULL], "window_size": WINDOW}  # fmt: skip
    return {"model_type": "qwen2_5_vl", "hidden_size": wide, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv, "intermediate_size": inner, "vocab_size": vocabulary,
            "tie_word_embeddings": wide == 2048, "vision_config": vision}  # fmt: skip


class Qwen25VL(Family):
    """`transformers.models.qwen2_5_vl`."""

    kind = "qwen2_5_vl"
    name = "Qwen2.5-VL"
    patch = 14
    published: ClassVar[Mapping[str, Json]] = {
        "Qwen/Qwen2.5-VL-3B-Instruct": _published(2048, 36, 16, 2, 11008, 151936, 3420),
        "Qwen/Qwen2.5-VL-7B-Instruct": _published(3584, 28, 28, 4, 18944, 152064, 3420),
        "Qwen/Qwen2.5-VL-32B-Instruct": _published(5120, 64, 40, 8, 27648, 152064, 3456),
        "Qwen/Qwen2.5-VL-72B-Instruct": _published(8192, 80, 64, 8, 29568, 152064, 3456),
    }

    def shares_prefixes(self, text: Json) -> bool:
        if text.get("layer_types") is None and text.get("use_sliding_window"):
            return int(text["max_window_layers"]) >= int(text["num_hidden_layers"])
        return super().shares_prefixes(text)

    def layer(self, text: Json) -> Tensors:
        wide, head = int(text["hidden_size"]), self._head(text)
        return (
            attention(wide, wide, head * kv_heads(text), bias=True)
            | gated_mlp(wide, int(text["intermediate_size"]), bias=False)
            | {"input_layernorm.weight": (wide,), "post_attention_layernorm.weight": (wide,)}
        )

    def block(self, vision: Json) -> Tensors:
        eye = int(vision["hidden_size"])
        return (
            linear("attn.qkv", 3 * eye, eye)
            | linear("attn.proj", eye, eye)
            | gated_mlp(eye, int(vision["intermediate_size"]), bias=True)
            | {"norm1.weight": (eye,), "norm2.weight": (eye,)}
        )

    def around(self, vision: Json) -> Tensors:
        eye = int(vision["hidden_size"])
        merged = eye * self.patches_per_token(vision)
        return (
            {"patch_embed.proj.weight": (eye, *self.patch_shape(vision)), "merger.ln_q.weight": (eye,)}
            | linear("merger.mlp.0", merged, merged)
            | linear("merger.mlp.2", int(vision["out_hidden_size"]), merged)
        )

    def particulars(self, text: Json, vision: Json) -> dict[str, Any]:
        depth = int(vision["depth"])
        return {
            "head": self._head(text),
            "full": sum(1 for index in vision.get("fullatt_block_indexes", FULL) if index < depth),
            "window": int(vision.get("window_size", WINDOW)) // int(vision.get("patch_size", self.patch)),
            "qk_norm": False,
            "gated_eye": True,
            "mergers": 1,
        }

    @staticmethod
    def _head(text: Json) -> int:
        """Width of a head."""
        return int(text["hidden_size"]) // int(text["num_attention_heads"])
