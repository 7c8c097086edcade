"""Training-only heads of hatch-tiny's pretraining, and the numbers in answers that they and the scores use."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from torch import nn

from hatch_ray.learning.skills import signed_numbers
from tools.pretrain_data import GRID, THINGS, ViewSet


class DenseHeads(nn.Module):
    """What each patch shows, read linearly from its merged token; used in training only.

    Targets per patch: log depth, sine and cosine of the ray's azimuth, world point, camera position; the thing.
    """

    WIDTH = 1 + 2 + 3 + 3

    def __init__(self, width: int) -> None:
        super().__init__()
        self.numbers = nn.Linear(width, self.WIDTH)
        self.things = nn.Linear(width, len(THINGS))

    def forward(self, tokens: torch.Tensor, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """tokens (B, cells, width) -> loss and its parts."""
        out = self.numbers(tokens)
        ground = (batch["depth"] > 0).float()
        error = (out - batch["numbers"]).square()
        depth = (error[..., 0] * ground).sum() / ground.sum()
        azimuth = error[..., 1:3].mean()
        point = (error[..., 3:6].mean(-1) * ground).sum() / ground.sum()
        place = error[..., 6:9].mean()
        thing = nn.functional.cross_entropy(self.things(tokens).flatten(0, 1), batch["thing"].flatten())
        total = depth + 2 * azimuth + point + place + 0.3 * thing
        parts = {"depth": depth, "azimuth": azimuth, "point": point, "place": place, "thing": thing}
        return total, {name: float(value.detach()) for name, value in parts.items()}


def dense_targets(views: ViewSet, room: np.ndarray, view: np.ndarray) -> dict[str, torch.Tensor]:
    """Targets of DenseHeads for views (room[n], view[n])."""
    depth = views.depth[room, view]
    azimuth = np.radians(views.azimuth[room, view])
    place = np.repeat(views.position[room, view][:, None], views.cells, axis=1) / [1.5, 1.5, 1.0]
    numbers = np.concatenate(
        [
            np.log(np.maximum(depth, 0.2))[..., None],
            np.stack([np.sin(azimuth), np.cos(azimuth)], axis=-1),
            views.point[room, view] / [2.0, 2.0, 1.0],
            place,
        ],
        axis=-1,
    )
    return {
        "numbers": torch.tensor(numbers, dtype=torch.float32),
        "depth": torch.tensor(depth),
        "thing": torch.tensor(views.thing[room, view], dtype=torch.long),
    }


class RelationHeads(nn.Module):
    """How each image lies to an earlier one, read linearly from the language model's second layer; training only.

    At a token of image j, for an earlier image i: sine and cosine of the turn from i to j, camera j's place and the
    patch's point (right and forward of camera i, level). It is the comparing that the answers need, at every token.
    """

    WIDTH = 2 + 2 + 2
    LAYER = 1

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_first = nn.Linear(width, self.WIDTH)
        self.to_second = nn.Linear(width, self.WIDTH)

    def forward(
        self, hidden: torch.Tensor, views: ViewSet, room: np.ndarray, view: np.ndarray
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """hidden (B, n, cells, width) of the image tokens; room and view (B, n) -> loss and its parts."""
        n = hidden.shape[1]
        pairs = [(self.to_first, 0, j) for j in range(1, n)] + [(self.to_second, 1, j) for j in range(2, n)]
        turn, place, point = [], [], []
        for head, i, j in pairs:
            target, ground = relation_targets(views, room[:, i], view[:, i], view[:, j])
            error = (head(hidden[:, j]) - target).square()
            turn.append(error[..., :2].mean())
            place.append(error[..., 2:4].mean())
            point.append((error[..., 4:].mean(-1) * ground).sum() / ground.sum())
        parts = {
            "turn": torch.stack(turn).mean(),
            "camera": torch.stack(place).mean(),
            "seen": torch.stack(point).mean(),
        }
        total = 3 * parts["turn"] + 2 * parts["camera"] + parts["seen"]
        return total, {name: float(value.detach()) for name, value in parts.items()}


def relation_targets(
    views: ViewSet, room: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, cells, 6) targets of RelationHeads and (B, cells) 1 where the patch has a point."""
    heading = np.radians(views.heading[room, first])
    turn = np.radians(views.heading[room, second]) - heading
    axes = np.stack(
        [np.stack([np.cos(heading), -np.sin(heading)], -1), np.stack([np.sin(heading), np.cos(heading)], -1)], 1
    )
    origin = views.position[room, first, :2]
    place = np.einsum("bij,bj->bi", axes, views.position[room, second, :2] - origin)
    point = np.einsum("bij,bcj->bci", axes, views.point[room, second, :, :2] - origin[:, None]) / 2
    whole = np.concatenate([np.sin(turn)[:, None], np.cos(turn)[:, None], place], axis=1)
    whole = np.repeat(whole[:, None], views.cells, axis=1)
    target = torch.tensor(np.concatenate([whole, point], axis=-1), dtype=torch.float32)
    return target, torch.tensor(views.depth[room, second] > 0, dtype=torch.float32)


FIRST_WORDS = ("heading", "facing", "direction", "ahead", "depth", "position", "camera", "from", "where", "match")


class AnswerHead(nn.Module):
    """The answer as two numbers, read linearly where the question ends; training only.

    Its squared error is smooth where the digits' cross-entropy is not, so the attention learns what to fetch.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.numbers = nn.Linear(width, 2 * len(FIRST_WORDS))

    def forward(self, hidden: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """hidden (B, L, width); asked (Q, 5): row, position of the question's last token, kind, the two numbers."""
        if len(asked) == 0:
            return hidden.sum() * 0
        at, kind = asked[:, :2].long(), asked[:, 2].long()
        said = self.numbers(hidden[at[:, 0], at[:, 1]]).view(len(asked), -1, 2)[torch.arange(len(asked)), kind]
        return (said - asked[:, 3:]).square().mean()


def answer_numbers(question: str, answer: str, grid: int = GRID) -> tuple[int, float, float] | None:
    """(index into FIRST_WORDS, two numbers of size about 1), or None where the answer is a name."""
    word = re.match("[a-z]+", question).group()  # type: ignore[union-attr]
    if word not in FIRST_WORDS or answer == "none":
        return None
    kind = FIRST_WORDS.index(word)
    if word == "match":
        half = (grid - 1) / 2
        return kind, int(answer[0]) / half - 1, int(answer[1]) / half - 1
    numbers = signed_numbers(answer)
    if word in ("heading", "facing", "direction"):
        return kind, math.sin(math.radians(numbers[0])), math.cos(math.radians(numbers[0]))
    if word in ("ahead", "depth"):
        return kind, numbers[0] / 2, 0.0
    if word == "position":
        return kind, numbers[0], numbers[1]
    angle, far = math.radians(numbers[0]), numbers[1] / (1 if word == "camera" else 2)
    return kind, far * math.sin(angle), far * math.cos(angle)


def numbers_error(reply: str, gold: str) -> list[float]:
    """Absolute error of each number of the gold; a reply without its numbers counts as zero said."""
    said, true = signed_numbers(reply), signed_numbers(gold)
    said += [0.0] * (len(true) - len(said))
    errors = [abs(a - b) for a, b in zip(said, true, strict=False)]
    return [min(error, 360 - error) if error > 180 else error for error in errors]
