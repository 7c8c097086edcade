"""A random Qwen3-VL as small as hatch-tiny, with its tokenizer: for tests. It has grouped keys and values, heads that
are together wider than the model, and two levels of DeepStack.

    python -m tools.tiny_qwen3 FOLDER
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerFast, Qwen3VLConfig

from tools.tiny import CHAT_TEMPLATE, MERGE, SPECIAL_TOKENS, ProcessorForm, TinyConfig, make_tiny

SYSTEM = (
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
"""What Qwen2.5-VL's chat template says before a first message, and Qwen3-VL's does not."""
assert SYSTEM in CHAT_TEMPLATE


@dataclass(frozen=True)
class TinyQwen3(TinyConfig):
    """Sizes. head: the width of one; side: of the square of learned positions; deepstack: blocks that give a level."""

    text_heads: int = 4
    kv_heads: int | None = 2
    head: int = 64
    side: int = 8
    deepstack: tuple[int, ...] = (0, 2)
    form: ClassVar[ProcessorForm] = ProcessorForm(
        processor="Qwen3VLProcessor",
        video="Qwen3VLVideoProcessor",
        patch=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        template=CHAT_TEMPLATE.replace(SYSTEM, ""),
    )

    def qwen(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        """The Hugging Face config."""
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
        sections = [12, 10, 10]  # of the 32 frequencies of a head, interleaved
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections, "mrope_interleaved": True}
        return Qwen3VLConfig(
            text_config={
                "vocab_size": self.vocab_size,
                "hidden_size": self.text_width,
                "intermediate_size": self.text_inner,
                "num_hidden_layers": self.text_layers,
                "num_attention_heads": self.text_heads,
                "num_key_value_heads": self.kv_heads,
                "head_dim": self.head,
                "max_position_embeddings": self.max_positions,
                "rope_parameters": rope,
                "tie_word_embeddings": self.tied,
                "bos_token_id": ids["<|endoftext|>"],
                "eos_token_id": ids["<|im_end|>"],
                "pad_token_id": ids["<|endoftext|>"],
            },
            vision_config={
                "depth": self.vision_layers,
                "hidden_size": self.vision_width,
                "intermediate_size": self.vision_inner,
                "num_heads": self.vision_heads,
                "out_hidden_size": self.text_width,
                "patch_size": self.form.patch,
                "spatial_merge_size": MERGE,
                "num_position_embeddings": self.side**2,
                "deepstack_visual_indexes": list(self.deepstack),
            },
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=self.tied,
        )


if __name__ == "__main__":
    make_tiny(Path(sys.argv[1]), 0, TinyQwen3())
