"""The sizes of a Qwen2.5-VL, from its config.json or a published name; memory follows from them. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatch_ray.model.folder_check import qwen_shapes
from hatch_ray.model.source import model_source


def _published(
    wide: int, layers: int, heads: int, kv: int, inner: int, vocabulary: int, eye_inner: int
) -> dict[str, Any]:
    """A config.json as the published models have it: text sizes at the top; the 3B alone has a tied head."""
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": eye_inner, "num_heads": 16,
              "out_hidden_size": wide, "fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112}  # fmt: skip
    return {"model_type": "qwen2_5_vl", "hidden_size": wide, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv, "intermediate_size": inner, "vocab_size": vocabulary,
            "tie_word_embeddings": wide == 2048, "vision_config": vision}  # fmt: skip


PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": _published(2048, 36, 16, 2, 11008, 151936, 3420),
    "Qwen/Qwen2.5-VL-7B-Instruct": _published(3584, 28, 28, 4, 18944, 152064, 3420),
    "Qwen/Qwen2.5-VL-32B-Instruct": _published(5120, 64, 40, 8, 27648, 152064, 3456),
    "Qwen/Qwen2.5-VL-72B-Instruct": _published(8192, 80, 64, 8, 29568, 152064, 3456),
}
"""Sizes of the published models (their config.json): known without a download."""


@dataclass(frozen=True)
class Shapes:
    """The sizes of a model. Names after `eye` are the image encoder's. Counts of parameters are of one layer or part.

    wide, heads, kv_heads, inner, layers, vocabulary: of the language model; eye, eye_heads, eye_inner, depth: of the
    encoder, `full` blocks of which look at a whole image and the others at windows of `window` patches a side.
    """

    wide: int
    heads: int
    kv_heads: int
    inner: int
    layers: int
    vocabulary: int
    tied: bool
    eye: int
    eye_heads: int
    eye_inner: int
    depth: int
    full: int
    window: int
    patch: int
    merge: int
    patch_values: int
    layer: int
    block: int
    merger: int
    patch_embedding: int

    @property
    def head(self) -> int:
        """Width of an attention head."""
        return self.wide // self.heads

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding, and of the head beside it where it is not tied."""
        return self.vocabulary * self.wide

    @property
    def vision(self) -> int:
        """Parameters of the image encoder, its merger included."""
        return self.patch_embedding + self.depth * self.block + self.merger

    @property
    def language(self) -> int:
        """Parameters of everything else."""
        return self.layers * self.layer + self.wide + self.embedding * (1 if self.tied else 2)

    @property
    def linear(self) -> int:
        """Parameters of the language layers' linear maps, biases left out: what adapters are added to."""
        return self.layers * (2 * self.wide * (self.wide + self.kv_heads * self.head) + 3 * self.wide * self.inner)

    @property
    def parameters(self) -> int:
        return self.language + self.vision

    def part(self, trainable: str) -> int:
        """Parameters of "all", "language" or "vision"."""
        return {"all": self.parameters, "language": self.language, "vision": self.vision}[trainable]

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA adapters of this rank on the language layers' linear maps (`model/lora.py`)."""
        kv = self.kv_heads * self.head
        ends = 2 * (self.wide + self.wide) + 2 * (self.wide + kv) + 3 * (self.wide + self.inner)
        return self.layers * rank * ends

    def patches(self, max_pixels: int) -> int:
        """Most patches of an image of so many pixels, a whole number of merged ones."""
        unit = (self.patch * self.merge) ** 2
        return max_pixels // unit * self.merge**2

    def image_tokens(self, max_pixels: int) -> int:
        """Most tokens of such an image in the prompt."""
        return self.patches(max_pixels) // self.merge**2


def shapes_of(base: str) -> Shapes:
    """The sizes of a model folder, "hatch-tiny" or a published name.

    Raises ValueError for a name that is neither, and for a folder without a Qwen2.5-VL's config.json.
    """
    if base in PUBLISHED:
        return read_shapes(PUBLISHED[base])
    source = Path(model_source(base))
    if not source.is_dir():
        raise ValueError(
            f"model.base={base} is not a folder and its size is not known before it is downloaded; "
            f"known names: {', '.join(PUBLISHED)}"
        )
    return read_shapes(json.loads((source / "config.json").read_text(encoding="utf-8")))


def read_shapes(config: Mapping[str, Any]) -> Shapes:
    """The sizes in a config.json. Raises KeyError for one that is absent."""
    text, vision = config.get("text_config") or config, config["vision_config"]
    tensors = {name: math.prod(shape) for name, shape in qwen_shapes(config).items()}

    def count(start: str) -> int:
        return sum(size for name, size in tensors.items() if name.startswith(start))

    heads = int(text["num_attention_heads"])
    patch, depth = int(vision.get("patch_size", 14)), int(vision["depth"])
    channels = int(vision.get("in_channels", vision.get("in_chans", 3)))
    return Shapes(
        wide=int(text["hidden_size"]),
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        inner=int(text["intermediate_size"]),
        layers=int(text["num_hidden_layers"]),
        vocabulary=int(text["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        eye=int(vision["hidden_size"]),
        eye_heads=int(vision["num_heads"]),
        eye_inner=int(vision["intermediate_size"]),
        depth=depth,
        full=sum(1 for index in vision.get("fullatt_block_indexes", (7, 15, 23, 31)) if index < depth),
        window=int(vision.get("window_size", 112)) // patch,
        patch=patch,
        merge=int(vision.get("spatial_merge_size", 2)),
        patch_values=channels * int(vision.get("temporal_patch_size", 2)) * patch**2,
        layer=count("model.layers.0."),
        block=count("visual.blocks.0."),
        merger=count("visual.merger."),
        patch_embedding=count("visual.patch_embed."),
    )
