"""What `bench.gpu` puts on a GPU: Qwen2.5-VL's shapes with random weights, a group of replies, their learner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from bench.shapes import QWEN_3B, parameters
from hatch_ray.learning.grpo import grpo_loss
from hatch_ray.model.base import recompute_activations
from hatch_ray.model.fast_vision import speed_up_vision
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.packing import PackedBatch, pack
from hatch_ray.model.prompt_tokens import ImagePatches, Prompt

TEXT_3B, VISION = QWEN_3B["text_config"], QWEN_3B["vision_config"]
TEXT_7B = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
           "num_attention_heads": 28, "num_key_value_heads": 4}  # fmt: skip
TEXT_TINY = {"vocab_size": 1152, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
VISION_TINY = {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "fullatt_block_indexes": [1]}
IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
SHAPES: dict[str, dict[str, Any]] = {
    "3B": QWEN_3B | {"tie_word_embeddings": True},
    "7B": {"text_config": TEXT_3B | TEXT_7B, "vision_config": VISION | {"out_hidden_size": 3584}},
    "tiny": {
        "text_config": TEXT_3B | TEXT_TINY, "vision_config": VISION | VISION_TINY | {"out_hidden_size": 256},
        "tie_word_embeddings": True,
    } | {name: 1140 + number for number, name in enumerate(IDS)},
}  # fmt: skip
"""Configs of Qwen2.5-VL-3B-Instruct and -7B-Instruct as published, and a tiny one."""
NAIVE_ROWS = 4
"""Replies that a pass of the naive way holds, or its activations would not fit beside the optimizer on 80 GB."""
SETTINGS = {"clip": 0.2, "beta": 0.0, "importance_cap": 2.0}


@dataclass(frozen=True)
class Load:
    """A group: `images` of `side` x `side` patches, a question of so many tokens, replies of these lengths."""

    images: int
    side: int
    question: int
    replies: tuple[int, ...]

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return self.question + self.images * (1 + self.side**2 // 4)

    @property
    def words(self) -> str:
        return (
            f"One group: {self.images} images of {self.side**2:,} patches, a question of {self.question} tokens, "
            f"{len(self.replies)} replies of {self.replies[0]:,} to {self.replies[-1]:,} tokens"
        )


REAL = Load(4, 44, 60, tuple(256 + 768 * i // 7 for i in range(8)))
TINY = Load(2, 10, 12, (4, 7, 9, 12))


def make_model(shape: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Random weights of this shape, made on the device, in training mode."""
    config = Qwen2_5_VLConfig(**SHAPES[shape])
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    speed_up_vision(model, device)
    recompute_activations(model, True, device)
    return model.train()


def make_group(shape: str, load: Load) -> tuple[Prompt, list[list[int]]]:
    """A prompt of random words and pictures, and random replies; no id is a special token's."""
    random = torch.Generator().manual_seed(0)
    config = Qwen2_5_VLConfig(**SHAPES[shape])

    def words(count: int) -> list[int]:
        return torch.randint(20, config.image_token_id - 20, (count,), generator=random).tolist()

    ids, images = words(load.question // 2), []
    for number in range(load.images):
        ids += [config.vision_start_token_id, *[config.image_token_id] * (load.side // 2) ** 2]
        pixels = torch.randn(load.side**2, 3 * 2 * 14 * 14, generator=random)
        images.append(ImagePatches(pixels, (1, load.side, load.side), key=str(number)))
    ids += words(load.question - load.question // 2)
    return Prompt(tuple(ids), tuple(images)), [words(length) for length in load.replies]


class Learner:
    """A model at work on one group: `shared`, or NAIVE_ROWS replies a pass with a prompt each."""

    def __init__(self, shape: str, load: Load, device: torch.device, dtype: torch.dtype, lora: int = 0) -> None:
        self.model = make_model(shape, device, dtype)
        self.device, self.parameters = device, parameters(self.model)
        if lora:
            from hatch_ray.model.lora import add_lora  # peft is needed by this part alone

            add_lora(self.model, lora)
        self.scorer = ReplyScorer(self.model, compute="bfloat16")
        self.scorer.encoder.kept_bytes = 0  # of a frozen encoder: a step meets pictures that it has not seen
        self.prompt, self.replies = make_group(shape, load)
        self.batches = self.packed(shared=True)
        self.scored = sum(map(len, self.replies))
        self.optimizer: torch.optim.Optimizer | None = None

    def packed(self, shared: bool) -> list[PackedBatch]:
        rows = len(self.replies) if shared else NAIVE_ROWS
        groups = [self.replies[i : i + rows] for i in range(0, len(self.replies), rows)]
        return [pack(self.model, [self.prompt], [g], shared).to(self.device) for g in groups]

    def loss(self, batch: PackedBatch, old: torch.Tensor | None = None) -> torch.Tensor:
        """GRPO's loss of a pass, its share of the group's; old: log-probabilities (the policy's own where None)."""
        logprobs = self.scorer(batch)[0]
        before = logprobs.detach() if old is None else old.expand_as(logprobs)
        advantages = torch.cos(batch.target.float())
        terms = grpo_loss(logprobs, before, before, advantages, None, **SETTINGS)
        return terms.loss.sum() / self.scored

    def passes(self) -> None:
        for batch in self.batches:
            self.loss(batch).backward()

    def passes_alone(self) -> None:
        self.passes()
        self.model.zero_grad(set_to_none=True)

    def optimize(self, rate: float) -> None:
        learning = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = None  # its moments go before others come
        self.optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.0, fused=learning[0].is_cuda)

    def step(self) -> None:
        assert self.optimizer is not None
        self.passes()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def encode(self) -> None:
        """The image encoder's share of the passes."""
        for batch in self.batches:
            with torch.autocast(self.device.type, torch.bfloat16):
                features = self.scorer.encoder(batch.images)
            if features.requires_grad:
                features.float().square().mean().backward()
        self.model.zero_grad(set_to_none=True)
