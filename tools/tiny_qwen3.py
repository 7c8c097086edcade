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

from tools.tiny import CHAT_TEMPLATE, ProcessorForm, TinyConfig, make_tiny

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
        sections = [12, 10, 10]  # of the 32 frequencies of a head, interleaved
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections, "mrope_interleaved": True}
        text = {"head_dim": self.head, "rope_parameters": rope, "tie_word_embeddings": self.tied}
        vision = {"num_position_embeddings": self.side**2, "deepstack_visual_indexes": list(self.deepstack)}
        return Qwen3VLConfig(**self.parts(tokenizer, text, vision))


if __name__ == "__main__":
    make_tiny(Path(sys.argv[1]), 0, TinyQwen3())
