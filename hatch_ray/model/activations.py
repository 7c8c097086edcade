"""What a forward and backward pass of the learner holds, in bytes, from shapes alone. Imports no torch.

Counted as autograd keeps tensors for the backward pass of `model/logprobs.py` (tests/model/test_memory.py compares it
with what torch allocates). In a formula T are tokens of the row, d the model's width, F its MLP's, c the bytes of a
number in the compute dtype, w of a weight, and H heads of width h.

    a language layer     2 norms: 8 T d, and 2 w T d where it learns; inputs of the linear maps; MLP: 4 c T F;
                         attention: c (4 P + 4 R + 2 K) d with P, R padded tokens of prompts and replies, and K the keys
                         that the replies see (each its prompt's and its own); 4 H (P + R); the mask
    a vision block       as above with n patches, e wide: 2 norms, MLP 4 c n E, attention 6 c n e
    with recomputation   a layer keeps its input alone, w T d or c n e; one layer at a time has all of the above
    logits               12 bytes each while they are made, at most HEAD_CHUNK of them; one chunk keeps 4 of these
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from hatch_ray.model.shapes import Shapes

HEAD_CHUNK = 2**28
"""`model.logprobs.HEAD_CHUNK`, which imports torch; a test compares them."""
Trainable = Literal["all", "language", "vision"]
FLOAT = 4


@dataclass(frozen=True)
class Row:
    """What one pass computes: prompts of `prompt` tokens with `images` of (height, width) `grid` patches each, and
    `replies` of `reply` tokens in all. Lengths are those after padding. shared: a prompt stands there once for all its
    replies. unequal: prompts differ in length, so that each reply has a mask of its own. part: the replies are some of
    a group, whose prompt passed before them (`model/kept_prompts.py`)."""

    prompts: int
    prompt: int
    replies: int
    reply: int
    images: int
    grid: tuple[int, int]
    unequal: bool = False
    part: bool = False

    @property
    def tokens(self) -> int:
        return self.prompts * self.prompt + self.scored

    @property
    def scored(self) -> int:
        return self.replies * self.reply

    @property
    def keys(self) -> int:
        """Keys that the replies see."""
        return self.replies * (self.prompt + self.reply)

    @property
    def patches(self) -> int:
        return self.images * self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Numbers:
    """Bytes of a number: `compute` in matrix products, `weight` in the weights (not adapters). gpu: kernels of a GPU.

    lora: rank of the adapters, 0 without. trainable: what learns where there are none.
    """

    compute: int
    weight: int
    gpu: bool = False
    lora: int = 0
    trainable: Trainable = "all"

    @property
    def language_learns(self) -> bool:
        return not self.lora and self.trainable != "vision"

    @property
    def vision_learns(self) -> bool:
        return not self.lora and self.trainable != "language"


@dataclass(frozen=True)
class Pass:
    """Bytes that a forward and backward pass holds for its backward half, by part, and needs beside them.

    vision, language  kept by the encoder and the language layers until the backward pass has gone through them.
    merger            of `vision`, gone when the encoder's blocks are passed backward.
    apart             of a prompt that passed before its replies: keys and values of all layers, and their gradients.
    waiting           of `vision` and `language`, what such a prompt holds while its replies pass.
    graphs            how many hold casts of the layers' weights: 2 where prompt and replies pass apart.
    ends              kept behind the last layer, gone when the first layer is passed backward.
    vision_layer, language_layer  needed beside those while one of their layers is passed backward, its recomputation
                      included; language_forward: while one is passed forward.
    logits            needed while the head is at work (what one chunk keeps for the backward pass included).
    """

    vision: int = 0
    language: int = 0
    merger: int = 0
    apart: int = 0
    waiting: int = 0
    graphs: int = 1
    ends: int = 0
    vision_layer: int = 0
    language_layer: int = 0
    language_forward: int = 0
    logits: int = 0

    @property
    def kept(self) -> int:
        return self.vision + self.language + self.apart + self.ends


def _norm(count: int, width: int, learns: bool, residual: int) -> int:
    return count * (FLOAT * width + FLOAT + (residual * width if learns else 0))


def language_layer(shapes: Shapes, row: Row, numbers: Numbers) -> tuple[int, int]:
    """What a language layer keeps, and what its backward pass needs beside that."""
    c, w, wide, tokens = numbers.compute, numbers.weight, shapes.wide, row.tokens
    learns, adapted = numbers.language_learns, numbers.lora > 0
    norms = 2 * _norm(tokens, wide, learns, w)
    apart = c < FLOAT and (w > c or adapted)  # each linear map keeps a cast of its own, not one with the others
    inputs = c * tokens * ((5 if apart else 2) * wide + shapes.attended) if learns or adapted else 0
    mlp = c * tokens * shapes.inner * (4 if learns or adapted else 3)
    adapters = 7 * c * tokens * numbers.lora
    padded = row.prompts * row.prompt + row.scored
    masks = row.replies if row.unequal else 1
    attention = (4 * c * padded + 2 * c * row.keys) * shapes.attended
    attention += FLOAT * shapes.heads * padded + c * masks * row.reply * (row.prompt + row.reply)
    if shapes.qk_norm:
        norms += _norm(tokens * (shapes.heads + shapes.kv_heads), shapes.head, learns, w)
    kept = norms + inputs + mlp + adapters + attention
    attending = 2 * c * row.keys * shapes.attended - mlp  # the MLP is through by then
    passing = _passing(tokens, wide, shapes.inner, numbers)
    if adapted and c < FLOAT:  # adapters take float32
        passing += FLOAT * tokens * shapes.inner
    return kept, max(passing, attending)


def language_forward(shapes: Shapes, row: Row, numbers: Numbers, recompute: bool) -> int:
    """What a language layer's forward pass needs beside what it keeps: keys, values or the MLP's inner values."""
    c, turned = numbers.compute, max(numbers.compute, numbers.weight)  # rotated keys are in the residual's dtype
    narrow = (turned + c) * row.keys * shapes.kv_heads * shapes.head
    if not recompute:
        return narrow + (turned if turned > c else 0) * row.keys * shapes.attended
    wide = (turned + (c if turned > c else 0) + c) * row.keys * shapes.attended
    return max(narrow + wide, 3 * c * row.tokens * shapes.inner)


def _passing(count: int, wide: int, inner: int, numbers: Numbers) -> int:
    """What the backward pass of an MLP makes: gradients of its inner values, and of one of its weights."""
    gradient = numbers.weight * wide * inner
    return max(2 * numbers.compute * count * inner, numbers.compute * count * inner + gradient)


def _eye_norm(shapes: Shapes, patches: int, residual: int) -> int:
    """Where MLPs have no gate, norms are LayerNorm: they keep their input alone, in float32."""
    return _norm(patches, shapes.eye, shapes.gated_eye, residual)


def vision_block(shapes: Shapes, row: Row, numbers: Numbers, full: bool) -> tuple[int, int]:
    """The same of a block of the image encoder; full: it looks at whole images, not at windows."""
    c, w, eye, patches = numbers.compute, numbers.weight, shapes.eye, row.patches
    image = row.grid[0] * row.grid[1]
    inputs = 1 + 1 + (2 if w > c and shapes.gated_eye else 1)
    inner = (4 if shapes.gated_eye else 2) * c * patches * shapes.eye_inner
    kept = 2 * _eye_norm(shapes, patches, c) + inputs * c * patches * eye + inner
    together = full or not (row.grid[0] % shapes.window or row.grid[1] % shapes.window)
    if together and not numbers.gpu:  # fast_vision: all windows at once, their weights kept
        kept += 3 * c * patches * eye
        kept += c * shapes.eye_heads * patches * (image if full else shapes.window**2)
    else:
        kept += 6 * c * patches * eye + FLOAT * patches * shapes.eye_heads
    return kept, _passing(patches, eye, shapes.eye_inner, numbers)


def vision_pass(shapes: Shapes, row: Row, numbers: Numbers, recompute: bool, alone: bool = False) -> Pass:
    """What one pass of the image encoder over a row's images holds. alone: without the language model (PaStA), whose
    batch of float32 patches is on the device."""
    c, patches, eye = numbers.compute, row.patches, shapes.eye
    full, windowed = (vision_block(shapes, row, numbers, whole) for whole in (True, False))
    merger = shapes.mergers * (_eye_norm(shapes, patches, c) + 3 * c * patches * eye)
    pixels = (c if c < FLOAT or not alone else 0) + (FLOAT if alone else 0)
    kept = merger + pixels * patches * shapes.patch_values + 2 * FLOAT * patches * (eye // shapes.eye_heads)
    there = [block for block, count in ((full, shapes.full), (windowed, shapes.depth - shapes.full)) if count]
    if recompute:
        into = c * patches * eye  # a block's input; in float32 its first norm keeps the same
        again = max(sum(block) for block in there) - (into if c == FLOAT else 0)
        return Pass(vision=kept + shapes.depth * into, merger=merger, vision_layer=again)
    kept += shapes.full * full[0] + (shapes.depth - shapes.full) * windowed[0]
    return Pass(vision=kept, merger=merger, vision_layer=max(beside for _, beside in there))


def whole_pass(shapes: Shapes, row: Row, numbers: Numbers, recompute: bool) -> Pass:
    """What one pass of the whole model over a row holds (GRPO, supervised stages)."""
    seen = vision_pass(shapes, row, numbers, recompute) if numbers.vision_learns else Pass()
    rows = [replace(row, replies=0, reply=0), replace(row, prompts=0)] if row.part else [row]  # they pass one by one
    layers = [language_layer(shapes, one, numbers) for one in rows]
    again = [layer - (_into(shapes, one, numbers) if numbers.weight == FLOAT else 0)
             for one, (layer, _) in zip(rows, layers, strict=True)]  # fmt: skip
    passing = [beside + (more if recompute else 0) for (_, beside), more in zip(layers, again, strict=True)]
    kept = [_into(shapes, one, numbers) if recompute else layer for one, (layer, _) in zip(rows, layers, strict=True)]
    ends = _norm(row.tokens, shapes.wide, numbers.language_learns, numbers.weight)
    chunk = min(row.scored, max(1, HEAD_CHUNK // shapes.vocabulary))
    return replace(
        seen,
        language=shapes.layers * sum(kept) + 2 * FLOAT * row.tokens * shapes.head,
        apart=kept_prompts(shapes, row, numbers) if row.part else 0,
        waiting=seen.vision + shapes.layers * kept[0] if row.part else 0,
        graphs=len(rows),
        ends=ends + numbers.compute * row.scored * shapes.wide,
        language_forward=max(language_forward(shapes, one, numbers, recompute) for one in rows),
        language_layer=max(passing),
        logits=3 * FLOAT * chunk * shapes.vocabulary,
    )


def _into(shapes: Shapes, row: Row, numbers: Numbers) -> int:
    """A language layer's input, which in float32 its first norm keeps too."""
    return numbers.weight * row.tokens * shapes.wide


def kept_prompts(shapes: Shapes, row: Row, numbers: Numbers) -> int:
    """Keys (in the residual's dtype) and values of every layer of a row's prompts, and the gradients collected."""
    each = max(numbers.compute, numbers.weight) + numbers.compute
    return 2 * each * shapes.layers * row.prompts * row.prompt * shapes.kv_heads * shapes.head


def square_grid(patches: int, merge: int) -> tuple[int, int]:
    """A grid of about so many patches, sides of whole merged patches, at most twice as wide as high."""
    merged = patches // merge**2
    side = next((n for n in range(math.isqrt(merged), 0, -1) if merged % n == 0), 1)
    return (side * merge, merged // side * merge)
