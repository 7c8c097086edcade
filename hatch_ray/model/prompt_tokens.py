"""Prompts as a model takes them: token ids with one token for each merged image patch, and the images' patches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image


@dataclass(frozen=True)
class ImagePatches:
    """One image as the encoder takes it: pixels (t*h*w, channels*2*patch*patch) and its grid (t, h, w) in patches.

    key names the image's content; images of one key are encoded once. Empty: unknown, the object stands for itself.
    """

    pixels: torch.Tensor
    grid: tuple[int, int, int]
    key: str = ""

    @property
    def patches(self) -> int:
        """How many there are."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt. `token_ids` holds one image token for each merged patch."""

    token_ids: tuple[int, ...]
    images: tuple[ImagePatches, ...]


def process_image(processor: Any, image: Image.Image, key: str = "") -> ImagePatches:
    """Resize, normalise and cut one RGB image into patches."""
    out = processor.image_processor(images=[image], return_tensors="pt")
    t, h, w = out["image_grid_thw"][0].tolist()
    return ImagePatches(out["pixel_values"], (t, h, w), key)


def image_tokens_by_size(processor: Any, width: int, height: int) -> int:
    """Tokens of an image of this size (pixels as the processor gets them), nothing decoded."""
    patches = processor.image_processor.get_number_of_image_patches(height, width, {})
    return int(patches) // processor.image_processor.merge_size**2


def prompt_length(processor: Any, text: str, sizes: Iterable[tuple[int, int]]) -> int:
    """Tokens of a chat text whose image placeholders stand for images of these (width, height), nothing decoded."""
    return widened_length(processor, len(processor.tokenizer(text, add_special_tokens=False)["input_ids"]), sizes)


def widened_length(processor: Any, tokens: int, sizes: Iterable[tuple[int, int]]) -> int:
    """The same of a chat text that has so many tokens, a placeholder for each image among them."""
    return tokens + sum(image_tokens_by_size(processor, width, height) - 1 for width, height in sizes)


def tokenize_prompt(processor: Any, text: str, images: Sequence[ImagePatches]) -> Prompt:
    """Tokenise chat text with one image placeholder for each image, and widen each placeholder to its patches.

    Raises ValueError when the numbers differ.
    """
    image_id = processor.image_token_id
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids.count(image_id) != len(images):
        raise ValueError(f"the prompt has {ids.count(image_id)} image placeholders for {len(images)} images")
    lengths = iter([image.patches // processor.image_processor.merge_size**2 for image in images])
    wide: list[int] = []
    for token in ids:
        wide += [token] * (next(lengths) if token == image_id else 1)
    return Prompt(tuple(wide), tuple(images))
