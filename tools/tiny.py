"""hatch-tiny: a Qwen2.5-VL of a few million parameters with its own byte-level tokenizer.

It has the architecture, special tokens, chat template and processor of Qwen2.5-VL, so transformers and vLLM load it as
they load any other. The shipped weights come from `tools.pretrain_tiny` (docs/hatch-tiny.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast, Qwen2_5_VLConfig

from hatch_ray.run_folder import write_atomic
from tools.tiny_text import tokenizer_corpus

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen2.5-VL's, with ids of this vocabulary."""

PRE_TOKEN = r"""(?:(?!left|right)[^\s\d])*["<>](?:(?!left|right)[^\s\d])*|\d|left|right| ?\p{L}+| ?[^\s\p{L}\d]+|\s+"""
"""A digit, and in JSON the words left and right, are always tokens of their own (what is learned of them elsewhere
holds in a plan); the JSON or tags between may be one token; else words and signs."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2.5-VL's chat template (without its option to number the pictures)."""

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
TIED_SCALE = 0.05
PATCH = 14
MERGE = 2


@dataclass(frozen=True)
class ProcessorForm:
    """How a family's folder names its processors, what they do to pixels, and its chat template."""

    processor: str = "Qwen2_5_VLProcessor"
    video: str = "Qwen2VLVideoProcessor"
    patch: int = PATCH
    mean: tuple[float, ...] = IMAGE_MEAN
    std: tuple[float, ...] = IMAGE_STD
    template: str = CHAT_TEMPLATE


@dataclass(frozen=True)
class TinyConfig:
    """Sizes. The language model's heads are 64 wide (vLLM's CPU attention serves 32, 64, 80, ...), the encoder's 32."""

    vocab_size: int = 1152
    text_layers: int = 4
    text_width: int = 192
    text_heads: int = 3
    text_inner: int = 512
    vision_layers: int = 4
    vision_width: int = 128
    vision_heads: int = 4
    vision_inner: int = 384
    max_positions: int = 2048
    kv_heads: int | None = None
    """Heads of keys and values; None: as many as `text_heads`."""
    full_blocks: tuple[int, ...] | None = None
    """Blocks of the encoder that see whole images, the others windows of `window` patches a side; None: all."""
    window: int = 8
    tied: bool = False
    form: ClassVar[ProcessorForm] = ProcessorForm()

    def qwen(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        """The Hugging Face config."""
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]}
        full = range(self.vision_layers) if self.full_blocks is None else self.full_blocks
        vision = {"window_size": self.window * PATCH, "fullatt_block_indexes": list(full)}
        return Qwen2_5_VLConfig(**self.parts(tokenizer, {"rope_parameters": rope}, vision))

    def parts(self, tokenizer: PreTrainedTokenizerFast, text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
        """What configs of all families say alike, with what a family's language model and encoder say beside."""
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
        return {
            "text_config": {
                "vocab_size": self.vocab_size,
                "hidden_size": self.text_width,
                "intermediate_size": self.text_inner,
                "num_hidden_layers": self.text_layers,
                "num_attention_heads": self.text_heads,
                "num_key_value_heads": self.kv_heads or self.text_heads,
                "max_position_embeddings": self.max_positions,
                "bos_token_id": ids["<|endoftext|>"],
                "eos_token_id": ids["<|im_end|>"],
                "pad_token_id": ids["<|endoftext|>"],
            }
            | text,
            "vision_config": {
                "depth": self.vision_layers,
                "hidden_size": self.vision_width,
                "intermediate_size": self.vision_inner,
                "num_heads": self.vision_heads,
                "out_hidden_size": self.text_width,
                "patch_size": self.form.patch,
                "spatial_merge_size": MERGE,
            }
            | vision,
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "tie_word_embeddings": self.tied,
        }


def train_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text encodes and decodes exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def save_processor(
    tokenizer: PreTrainedTokenizerFast, out: Path, image_size: int = 112, form: ProcessorForm = TinyConfig.form
) -> None:
    """Tokenizer, chat template and the image and video processors' settings, as a published folder holds them."""
    tokenizer.save_pretrained(out)
    pixels = {"shortest_edge": (2 * form.patch * MERGE) ** 2, "longest_edge": (4 * image_size) ** 2}
    common = {
        "patch_size": form.patch,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "size": pixels,
        "image_mean": list(form.mean),
        "image_std": list(form.std),
        "processor_class": form.processor,
    }
    image = common | {"image_processor_type": "Qwen2VLImageProcessor"}
    video = common | {"video_processor_type": form.video}
    write_atomic(out / "preprocessor_config.json", json.dumps(image, indent=2))
    write_atomic(out / "video_preprocessor_config.json", json.dumps(video, indent=2))
    write_atomic(out / "chat_template.jinja", form.template)


def initialise(module: nn.Module, layers: int) -> None:
    """Random weights of scale 1 / sqrt(inputs): the usual 0.02 leaves so narrow a model with uniform attention.

    Projections back into the residual stream are smaller by sqrt(2 layers); embeddings have deviation 0.3.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            back = name.endswith(("o_proj", "down_proj", "attn.proj", "linear_fc2"))
            std = part.in_features**-0.5 / (math.sqrt(2 * layers) if back else 1)
            nn.init.normal_(part.weight, std=std)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.3)


def new_tiny(seed: int, config: TinyConfig) -> tuple[Any, PreTrainedTokenizerFast]:
    """Random float32 weights and the tokenizer, both from nothing but the seed and this package's texts."""
    tokenizer = train_tokenizer(tokenizer_corpus(), config.vocab_size)
    tokenizer.chat_template = config.form.template
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"vocab_size={config.vocab_size} is too small for the tokenizer's {len(tokenizer)} tokens")
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config.qwen(tokenizer)).float()
    initialise(model.model.language_model, config.text_layers)
    initialise(model.model.visual.blocks, config.vision_layers)
    if config.tied:  # else the token just read is certain to come again
        with torch.no_grad():
            model.lm_head.weight.mul_(TIED_SCALE)
    torch.set_rng_state(state)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return model, tokenizer


def make_tiny(out: Path, seed: int = 0, config: TinyConfig | None = None) -> Path:
    """Write a complete folder with random weights (a second's work), for tests and as the start of pretraining."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    config = config or TinyConfig()
    model, tokenizer = new_tiny(seed, config)
    model.save_pretrained(out)
    save_processor(tokenizer, out, form=config.form)
    return out
