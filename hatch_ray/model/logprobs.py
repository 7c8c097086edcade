"""Log-probabilities of replies under the policy, with the prompt of a group computed once.

A row of the batch is one prompt followed by several replies to it:

    [ prompt with its images | reply 0 | reply 1 | ... | padding ]

The attention mask lets a reply see the prompt and itself, never another reply, and every reply's positions continue
from the prompt's end; so the result equals one row for each reply, at a fraction of the tokens, and the image encoder
runs once for each group. Values of all scored tokens come flat, (N,), in the order row, reply, token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.checkpoint import checkpoint

from hatch_ray.model.base import BAN_BIAS

HEAD_CHUNK = 2**28
"""Largest number of logits held at once; more are computed in pieces, and again in the backward pass."""


@dataclass(frozen=True)
class ImagePatches:
    """One image as the encoder takes it: pixels (t*h*w, channels*2*patch*patch) and its grid (t, h, w) in patches."""

    pixels: torch.Tensor
    grid: tuple[int, int, int]


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt. `token_ids` holds one image token for each merged patch."""

    token_ids: tuple[int, ...]
    images: tuple[ImagePatches, ...]


@dataclass
class PackedBatch:
    """Tensors of B rows of length L, N scored tokens; see the module's picture.

    input_ids (B, L); position_ids (3, B, L); mask (B, 1, L, L) bool; pixels (patches, values) and grids (images, 3) or
    None; predictor (N,) index into the flattened (B*L) hidden states that predict each scored token; target (N,) ids;
    reply (N,) index of the reply that a scored token belongs to, counted over the whole batch.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    pixels: torch.Tensor | None
    grids: torch.Tensor | None
    predictor: torch.Tensor
    target: torch.Tensor
    reply: torch.Tensor

    def to(self, device: torch.device | str) -> PackedBatch:
        return PackedBatch(**{name: None if t is None else t.to(device) for name, t in vars(self).items()})


def process_image(processor: Any, image: Image.Image) -> ImagePatches:
    """Resize, normalise and cut one RGB image into patches."""
    out = processor.image_processor(images=[image], return_tensors="pt")
    t, h, w = out["image_grid_thw"][0].tolist()
    return ImagePatches(out["pixel_values"], (t, h, w))


def image_tokens(processor: Any, grid: tuple[int, int, int]) -> int:
    """Tokens that an image takes in the prompt: its patches after the merger."""
    return grid[0] * grid[1] * grid[2] // processor.image_processor.merge_size**2


def image_tokens_by_size(processor: Any, width: int, height: int) -> int:
    """Tokens of an image of this size (pixels as the processor gets them), nothing decoded."""
    patches = processor.image_processor.get_number_of_image_patches(height, width, {})
    return int(patches) // processor.image_processor.merge_size**2


def tokenize_prompt(processor: Any, text: str, images: Sequence[ImagePatches]) -> Prompt:
    """Tokenise chat text with one image placeholder for each image, and widen each placeholder to its patches.

    Raises ValueError when the numbers differ.
    """
    image_id = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids.count(image_id) != len(images):
        raise ValueError(f"the prompt has {ids.count(image_id)} image placeholders for {len(images)} images")
    remaining = iter(images)
    wide: list[int] = []
    for token in ids:
        wide += [token] * (image_tokens(processor, next(remaining).grid) if token == image_id else 1)
    return Prompt(tuple(wide), tuple(images))


def prompt_positions(model: nn.Module, token_ids: torch.Tensor, grids: torch.Tensor | None) -> torch.Tensor:
    """(3, P) rotary positions (time, height, width) of one prompt, by the model's own rule."""
    core = model.model
    types = (token_ids == core.config.image_token_id).int()
    positions, _ = core.get_rope_index(token_ids[None], types[None], image_grid_thw=grids)
    return positions[:, 0]


def pack(
    model: nn.Module, prompts: Sequence[Prompt], replies: Sequence[Sequence[Sequence[int]]], pad_id: int
) -> PackedBatch:
    """One row for each prompt with its replies (lists of token ids, none empty)."""
    if len(prompts) != len(replies) or not prompts:
        raise ValueError(f"{len(prompts)} prompts and {len(replies)} lists of replies")
    image_id = model.model.config.image_token_id
    lengths = [len(p.token_ids) + sum(map(len, group)) for p, group in zip(prompts, replies, strict=True)]
    rows, width = len(prompts), max(lengths)
    input_ids = torch.full((rows, width), pad_id)
    positions = torch.zeros(3, rows, width, dtype=torch.long)
    mask = torch.eye(width, dtype=torch.bool).repeat(rows, 1, 1)
    predictor, target, owner = [], [], []
    n_replies = 0
    for row, (prompt, group) in enumerate(zip(prompts, replies, strict=True)):
        ids = torch.tensor(prompt.token_ids)
        size = len(ids)
        grids = torch.tensor([image.grid for image in prompt.images]) if prompt.images else None
        input_ids[row, :size] = ids
        positions[:, row, :size] = prompt_positions(model, ids, grids)
        following = int(positions[:, row, :size].max()) + 1
        mask[row, :size, :size] = torch.ones(size, size, dtype=torch.bool).tril()
        start = size
        for reply in group:
            tokens = torch.tensor(reply)
            assert len(tokens) > 0, "a reply has at least its end token"
            assert not (tokens == image_id).any(), "a reply holds an image token: the ban did not work"
            end = start + len(tokens)
            input_ids[row, start:end] = tokens
            positions[:, row, start:end] = following + torch.arange(len(tokens))
            mask[row, start:end, :size] = True
            mask[row, start:end, start:end] = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
            predictor.append(row * width + torch.cat([torch.tensor([size - 1]), torch.arange(start, end - 1)]))
            target.append(tokens)
            owner.append(torch.full((len(tokens),), n_replies))
            n_replies += 1
            start = end
    images = [image for prompt in prompts for image in prompt.images]
    return PackedBatch(
        input_ids,
        positions,
        mask[:, None],
        torch.cat([image.pixels for image in images]) if images else None,
        torch.tensor([image.grid for image in images]) if images else None,
        torch.cat(predictor),
        torch.cat(target),
        torch.cat(owner),
    )


class ReplyScorer(nn.Module):
    """Maps a `PackedBatch` to (log-probabilities (N,), entropies (N,)) under temperature and the ban of tokens.

    A module, so that DistributedDataParallel and FSDP can wrap it. Both results are float32; the entropy (nats, of the
    same tempered and masked distribution) has no gradient.
    """

    def __init__(self, model: nn.Module, temperature: float = 1.0, banned: Sequence[int] = ()) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.model = model
        self.temperature = temperature
        vocabulary = model.lm_head.out_features
        bias = torch.zeros(vocabulary)
        bias[list(banned)] = BAN_BIAS
        self.register_buffer("bias", bias.to(next(model.parameters()).device), persistent=False)

    def forward(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.model.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.mask,
            pixel_values=batch.pixels,
            image_grid_thw=batch.grids,
            use_cache=False,
        ).last_hidden_state
        hidden = hidden.reshape(-1, hidden.shape[-1])[batch.predictor]
        step = max(1, HEAD_CHUNK // len(self.bias))
        if len(hidden) <= step:
            return self._score(hidden, batch.target)
        pieces = [
            checkpoint(self._score, h, t, use_reentrant=False)
            for h, t in zip(hidden.split(step), batch.target.split(step), strict=True)
        ]
        return torch.cat([p[0] for p in pieces]), torch.cat([p[1] for p in pieces])

    def _score(self, hidden: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = (self.model.lm_head(hidden).float() + self.bias) / self.temperature
        logprobs = logits.log_softmax(-1)
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, target[:, None])[:, 0], entropy
