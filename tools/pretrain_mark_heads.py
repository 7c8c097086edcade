"""Training-only heads of the pretraining on marks: what each merged token shows of a mark, what a place's name fetches,
and the answer's numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from hatch_ray.data.markers import COLORS
from hatch_ray.data.numbered import label_middle
from tools.pretrain_data import CELL_PX
from tools.pretrain_heads import FIRST_WORDS, answer_numbers
from tools.pretrain_marks import LARGEST, Asked, Shown

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
    numbers of `pretrain_marks.place_numbers`, and which image token shows the place (a pointer). A second pointer, from
    the question's last token in the third layer, goes to the place that is the answer.
    """

    WIDTH, BOX = 14, 4
    LAYER, FOUND_LAYER = 1, 2
    KEY = 64

    def __init__(self, width: int) -> None:
        super().__init__()
        self.numbers = nn.Linear(width, self.WIDTH)
        self.query, self.key = nn.Linear(width, self.KEY), nn.Linear(width, self.KEY)
        self.found_query, self.found_key = nn.Linear(width, self.KEY), nn.Linear(width, self.KEY)

    def forward(
        self,
        hidden: torch.Tensor,
        hidden_found: torch.Tensor,
        is_image: torch.Tensor,
        named: torch.Tensor,
        found: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """hidden, hidden_found (B, L, width); is_image (B, L); named (M, 3 + WIDTH + 1): row, position, image token's
        index in its row, numbers, whether it has a box; found (F, 3) likewise without numbers.
        """
        parts: dict[str, float] = {}
        total = hidden.sum() * 0
        if len(named):
            row, at, cell = named[:, :3].long().unbind(1)
            said, true = self.numbers(hidden[row, at]), named[:, 3 : 3 + self.WIDTH]
            error = (said - true).square()
            plain = self.WIDTH - self.BOX
            mention = error[:, :plain].mean() + (error[:, plain:].mean(1) * named[:, -1]).mean()
            pointer = self._pointer(hidden, is_image, row, at, cell, self.query, self.key)
            total = total + 2 * mention + 0.5 * pointer
            parts |= {"mention": float(mention.detach()), "pointer": float(pointer.detach())}
        if len(found):
            row, at, cell = found.long().unbind(1)
            pointer = self._pointer(hidden_found, is_image, row, at, cell, self.found_query, self.found_key)
            total = total + 0.5 * pointer
            parts["found"] = float(pointer.detach())
        return total, parts

    def _pointer(
        self, hidden: torch.Tensor, is_image: torch.Tensor, row: torch.Tensor, at: torch.Tensor, cell: torch.Tensor,
        query: nn.Linear, key: nn.Linear,
    ) -> torch.Tensor:  # fmt: skip
        of_images = hidden[is_image].view(len(hidden), -1, hidden.shape[-1])
        keys = key(of_images)
        scores = torch.einsum("mk,mck->mc", query(hidden[row, at]), keys[row]) / math.sqrt(self.KEY)
        return nn.functional.cross_entropy(scores, cell)


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
