"""Models of random weights and batches of random replies, by size: what the learner's speed depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tools.tiny import TinyConfig, train_tokenizer
from tools.tiny_text import tokenizer_corpus

SMALL = {
    "6m": TinyConfig(text_layers=6, text_width=256, text_heads=4, text_inner=704),
    "30m": TinyConfig(
        text_layers=8, text_width=512, text_heads=8, text_inner=1408, vision_layers=6, vision_width=192,
        vision_heads=6, vision_inner=576,
    ),
}  # fmt: skip
SHAPES = ("6m", "30m", "qwen2.5-vl-3b")

QWEN_3B: dict[str, Any] = {
    "text_config": {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
        "patch_size": 14, "spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    },
    "tie_word_embeddings": False,
}  # fmt: skip
"""The published config of Qwen2.5-VL-3B-Instruct (its head is tied there; here it is counted as its own)."""


@dataclass(frozen=True)
class Load:
    """One learner's work: P prompts of so many images (square, pixels a side), G replies of R tokens each."""

    prompts: int
    images: int
    pixels: int
    group: int
    reply: int

    @property
    def name(self) -> str:
        return f"{self.images} images of {self.pixels} px, R = {self.reply}, G = {self.group}"


def make_model(shape: str, device: str, dtype: torch.dtype) -> tuple[Qwen2_5_VLForConditionalGeneration, Any]:
    """A model of this shape with random weights, and hatch-tiny's tokenizer (whose ids every shape knows)."""
    tokenizer = train_tokenizer(tokenizer_corpus(), TinyConfig().vocab_size)
    small = SMALL.get(shape, TinyConfig()).qwen(tokenizer)
    if shape in SMALL:
        config = small
    else:
        tokens = ("image_token_id", "video_token_id", "vision_start_token_id")
        config = Qwen2_5_VLConfig(**QWEN_3B, **{name: getattr(small, name) for name in tokens})
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return model.train(), tokenizer


def parameters(model: torch.nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def picture(number: int, pixels: int) -> Image.Image:
    """A square picture of smooth noise."""
    small = np.random.default_rng(number).integers(0, 255, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((pixels, pixels), Image.Resampling.BICUBIC)


def replies(load: Load, vocabulary: int = 1000) -> list[list[list[int]]]:
    """Random token ids: (prompts, group, reply)."""
    random = np.random.default_rng(0)
    return random.integers(20, vocabulary, (load.prompts, load.group, load.reply)).tolist()


def ceiling(prompt: int, group: int, reply: int) -> float:
    """rho = G (P + R) / (P + G R): how many times fewer tokens a shared prompt needs."""
    return group * (prompt + reply) / (prompt + group * reply)
