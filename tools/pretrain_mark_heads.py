"""Training-only heads of the pretraining on marks: what each merged token shows of a mark, what a place's name fetches,
and the answer's numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import rotate_half

from hatch_ray.data.markers import COLORS
from hatch_ray.data.numbered import label_middle
from tools.pretrain_data import CELL_PX
from tools.pretrain_heads import FIRST_WORDS, DenseHeads, RelationHeads, answer_numbers
from tools.pretrain_marks import LARGEST, Asked, Shown
from tools.pretraining import image_grid
from tools.tiny import PATCH

COLOR_NAMES = tuple(COLORS)
NUMBERS = max(LARGEST.values())


class MarkHeads(nn.Module):
    """What the patch of a merged token holds, linearly: discs and boxes' middles by colour, the number of a circle, and
    the label of one, which often lies in the cell above.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.colors = nn.Linear(width, 2 * len(COLOR_NAMES))
        self.number, self.label = nn.Linear(width, 1 + NUMBERS), nn.Linear(width, 1 + NUMBERS)

    def forward(self, tokens: torch.Tensor, targets: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """tokens (B, cells, width) -> loss and its parts; cells with marks count as much as all those without."""
        said = self.colors(tokens)
        wrong = nn.functional.binary_cross_entropy_with_logits(said, targets["colors"], reduction="none")
        held = targets["colors"] > 0
        color = wrong[~held].mean() + (wrong[held].mean() if held.any() else 0)
        digit = _of_class(self.number(tokens), targets["number"])
        label = _of_class(self.label(tokens), targets["label"])
        parts = {"color": color, "digit": digit, "label": label}
        return color + digit + label, {name: float(value.detach()) for name, value in parts.items()}


def _of_class(said: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of (B, cells, classes); the cells of class 0 count as much as all others."""
    wrong = nn.functional.cross_entropy(said.flatten(0, 1), number.flatten(), reduction="none")
    held = number.flatten() > 0
    return wrong[~held].mean() + (wrong[held].mean() if held.any() else 0)


def mark_targets(shown: Sequence[Shown]) -> dict[str, torch.Tensor]:
    """Targets of MarkHeads for the images of all of `shown`, in order."""
    cells = shown[0].views.cells
    n_images = sum(len(one.indices) for one in shown)
    colors = torch.zeros(n_images, cells, 2 * len(COLOR_NAMES))
    number, label = torch.zeros(2, n_images, cells, dtype=torch.long)
    image = 0
    for one in shown:
        for places in one.marked:
            for place in places:
                cell = one.cell(place)
                if place.label in COLORS:
                    colors[image, cell, COLOR_NAMES.index(place.label) + len(COLORS) * (place.box is not None)] = 1
                else:
                    number[image, cell] = int(place.label)
                    at = tuple(int(value * one.views.size) for value in place.pixel)
                    x, y = label_middle(place.label, (at[0], at[1]), (one.views.size,) * 2)
                    label[image, int(y) // CELL_PX * one.views.grid + int(x) // CELL_PX] = int(place.label)
            image += 1
    return {"colors": colors, "number": number, "label": label}


class MentionHead(nn.Module):
    """What the last token of a place's name has fetched from the images by the language model's second layer: the
    numbers of `pretrain_marks.place_numbers`. With it, one head of that layer is told what to fetch: its attention
    goes from the name to the image token that shows the place; one of the third layer, from the question's end to the
    place that is the answer. Left alone, such attention forms late (docs/hatch-tiny.md).
    """

    WIDTH, BOX = 14, 4
    LAYER, FOUND_LAYER = 1, 2
    HEAD, FOUND_HEAD = 1, 3
    """Heads that a wider model has more than the narrow one, where `group_heads` leaves the order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.numbers = nn.Linear(width, self.WIDTH)

    def forward(
        self,
        hidden: torch.Tensor,
        attended: Sequence[Attended],
        is_image: torch.Tensor,
        named: torch.Tensor,
        found: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """hidden (B, L, width) after LAYER; attended: LAYER and FOUND_LAYER; is_image (B, L), the same in every row;
        named (M, 3 + WIDTH + 1): row, position, image token's index in its row, numbers, whether it has a box; found
        (F, 3) likewise without numbers.
        """
        parts: dict[str, float] = {}
        total = hidden.sum() * 0
        images = is_image[0].nonzero().squeeze(1)
        if len(named):
            row, at, cell = named[:, :3].long().unbind(1)
            error = (self.numbers(hidden[row, at]) - named[:, 3 : 3 + self.WIDTH]).square()
            plain = self.WIDTH - self.BOX
            mention = error[:, :plain].mean() + (error[:, plain:].mean(1) * named[:, -1]).mean()
            fetch = nn.functional.cross_entropy(attended[0].scores(self.HEAD, row, at), images[cell])
            total = total + 2 * mention + fetch
            parts |= {"mention": float(mention.detach()), "fetch": float(fetch.detach())}
        if len(found):
            row, at, cell = found.long().unbind(1)
            fetch = nn.functional.cross_entropy(attended[1].scores(self.FOUND_HEAD, row, at), images[cell])
            total = total + fetch
            parts["found"] = float(fetch.detach())
        return total, parts


@dataclass(frozen=True)
class Attended:
    """An attention layer and what it was given: hidden (B, L, width), cosines and sines (B, L, head width)."""

    attention: nn.Module
    hidden: torch.Tensor
    rotary: tuple[torch.Tensor, torch.Tensor]

    def scores(self, head: int, row: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """(M, L) attention logits of a head from the tokens (row, at) to all of their row; later ones get -inf."""
        width = self.attention.head_dim
        group = head // self.attention.num_key_value_groups
        own, shared = slice(head * width, (head + 1) * width), slice(group * width, (group + 1) * width)
        weight, bias = self.attention.q_proj.weight[own], self.attention.q_proj.bias[own]
        query = nn.functional.linear(self.hidden[row, at], weight, bias)
        weight, bias = self.attention.k_proj.weight[shared], self.attention.k_proj.bias[shared]
        key = nn.functional.linear(self.hidden, weight, bias)
        cosine, sine = (part.expand(len(key), -1, -1) for part in self.rotary)
        query = query * cosine[row, at] + rotate_half(query) * sine[row, at]
        key = key * cosine + rotate_half(key) * sine
        scores = torch.einsum("mk,mlk->ml", query, key[row]) * self.attention.scaling
        return scores.masked_fill(torch.arange(key.shape[1]) > at[:, None], -torch.inf)


WORDS = (*FIRST_WORDS, "cell", "distance", "box", "nearer", "higher", "equal")


class MarkAnswerHead(nn.Module):
    """The answer as up to four numbers, read linearly where the question ends; as AnswerHead, for more questions."""

    WIDTH = 4

    def __init__(self, width: int) -> None:
        super().__init__()
        self.numbers = nn.Linear(width, self.WIDTH * len(WORDS))

    def forward(self, hidden: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """hidden (B, L, width); asked (Q, 7): row, position of the question's last token, index in WORDS, numbers."""
        if len(asked) == 0:
            return hidden.sum() * 0
        at, word = asked[:, :2].long(), asked[:, 2].long()
        said = self.numbers(hidden[at[:, 0], at[:, 1]]).view(len(asked), -1, self.WIDTH)[torch.arange(len(asked)), word]
        return (said - asked[:, 3:]).square().sum(1).mean() / 2


def mark_answer_numbers(asked: Asked, grid: int) -> tuple[int, float, float, float, float] | None:
    """(index into WORDS, four numbers of size about 1), or None where the answer is a name."""
    word = re.match("[a-z]+", asked.question).group()  # type: ignore[union-attr]
    numbers: list[float]
    match word:
        case "cell":
            half = (grid - 1) / 2
            numbers = [int(digit) / half - 1 for digit in asked.answer]
        case "distance":
            numbers = [float(asked.answer) / 2]
        case "box":
            numbers = [int(value) / 500 - 1 for value in asked.answer.split(",")]
        case "nearer" | "higher":
            numbers = [1.0 if asked.answer == asked.named[0][1].label else -1.0]
        case "equal":
            numbers = [1.0 if asked.answer == "yes" else -1.0]
        case _:
            known = answer_numbers(asked.question, asked.answer, grid)
            if known is None:
                return None
            numbers = list(known[1:])
    first, second, third, fourth = (np.array([*numbers, 0, 0, 0])[:4]).tolist()
    return WORDS.index(word), first, second, third, fourth


class Heads(nn.Module):
    """Everything that is thrown away after the training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.relations, self.marks = DenseHeads(width), RelationHeads(width), MarkHeads(width)
        self.mentions, self.answers = MentionHead(width), MarkAnswerHead(width)


def forward(
    model: Qwen2_5_VLForConditionalGeneration, batch: dict[str, torch.Tensor], pixels: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[Attended]]:
    """Last hidden state; the merged tokens in raster order; the hidden state after, and what went into the attention
    of, the layers that MentionHead reads.
    """
    seen: list[torch.Tensor] = []
    attended: list[Attended] = []

    def keep(module: nn.Module, _arguments: object, given: dict[str, Any]) -> None:
        attended.append(Attended(module, given["hidden_states"], given["position_embeddings"]))

    layers = model.model.language_model.layers
    hooks = [
        model.model.visual.register_forward_hook(lambda _module, _input, output: seen.append(output.pooler_output)),
        layers[MentionHead.LAYER].register_forward_hook(lambda _module, _input, output: seen.append(output)),
        *(
            layers[layer].self_attn.register_forward_pre_hook(keep, with_kwargs=True)
            for layer in (MentionHead.LAYER, MentionHead.FOUND_LAYER)
        ),
    ]
    output = model.model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        pixel_values=pixels,
        image_grid_thw=image_grid(len(pixels) // (size // PATCH) ** 2, size),
        use_cache=False,
    )
    for hook in hooks:
        hook.remove()
    return output.last_hidden_state, *seen, attended
