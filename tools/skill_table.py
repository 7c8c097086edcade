"""What a hatch-tiny can: greedy answers to single questions on held-out rooms of the pretraining.

    python -m tools.skill_table MODEL --views OUT/views --n 200

A line a skill: the share of exact answers or the mean absolute error of each number, with a 95 % interval, and in
brackets the same with another question's images.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from hatch_ray.cli import run_command
from hatch_ray.model.fast_vision import speed_up_vision
from tools.pretrain_data import QUESTIONS, TEXTS, ask
from tools.pretrain_evaluation import greedy
from tools.pretrain_heads import numbers_error
from tools.pretrain_mark_questions import ask_about
from tools.pretrain_marks import Asked, Style, show
from tools.pretrain_packing import Packer, draw_views
from tools.pretrain_spots import SpotSet
from tools.pretraining import patchify

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Skill:
    """A kind of question on views of a size with marks of a style. old: of the first pretraining. by_name: 1 where it
    names things, 0 where it points at marks. across: both places in one view (False), in two (True).
    """

    name: str
    kind: str
    size: int = 112
    style: Style = "plain"
    by_name: float = 0.0
    old: bool = False
    across: bool | None = None

    @property
    def is_text(self) -> bool:
        """Whether answers are right or wrong, not near."""
        return self.kind in (TEXTS if self.old else ("cell", "thing", "match", "nearer", "higher", "same", "equal"))


SKILLS = (
    *(Skill(kind, kind, old=True) for kind in QUESTIONS),
    *(Skill(f"named thing: {kind}", kind, by_name=1.0) for kind in ("cell", "where", "box", "depth", "distance")),
    *(
        Skill(f"coloured mark: {kind}", kind, style="colors")
        for kind in ("cell", "thing", "depth", "where", "turned", "match", "nearer", "higher")
    ),
    Skill("coloured mark: distance in a view", "distance", style="colors", across=False),
    Skill("coloured mark: distance across views", "distance", style="colors", across=True),
    *(
        Skill(f"numbered mark, 224: {kind}", kind, size=224, style="numbers")
        for kind in ("cell", "depth", "where", "nearer", "distance", "same", "equal")
    ),
)


def draw_skill(skill: Skill, views: SpotSet, n: int) -> tuple[list[Asked], np.ndarray]:
    """n questions of a skill, the same for every model, and their views (n, 2, H, W, 3)."""
    rng = random.Random(f"evaluate {skill.kind}" if skill.old else f"skill {skill.name}")
    asked: list[Asked] = []
    images = []
    while len(asked) < n:
        room, indices = draw_views(views, 2, rng)
        if skill.old:
            pair = ask(skill.kind, views, room, indices, rng)
            one = Asked(skill.kind, *pair) if pair else None
            shown = np.stack([views.rgb[room, index] for index in indices])
        else:
            on = show(views, room, indices, skill.style, rng)
            one, shown = ask_about(skill.kind, on, rng, skill.by_name), on.images
        if one is None:
            continue
        if skill.across is not None and skill.across != (one.named[0][1].view != one.named[1][1].view):
            continue
        asked.append(one)
        images.append(shown)
    return asked, np.stack(images)


@torch.no_grad()
def measure(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, skill: Skill, views: SpotSet, n: int
) -> dict[str, str]:
    """By "true" and "swapped": the score and its interval, for people."""
    asked, images = draw_skill(skill, views, n)
    packer = Packer(tokenizer)
    result = {}
    for name, shift in (("true", 0), ("swapped", 1)):
        seen = np.roll(images, -shift, axis=0)
        replies: list[str] = []
        batch = 50 if skill.size == 112 else 20
        for start in range(0, n, batch):
            part = slice(start, start + batch)
            pixels = patchify(seen[part].reshape(-1, *seen.shape[2:]))
            questions = [one.question for one in asked[part]]
            replies += greedy(model, packer, questions, pixels, skill.size, 18 if skill.kind == "box" else 9)
        result[name] = score(skill, replies, [one.answer for one in asked])
    return result


def score(skill: Skill, replies: Sequence[str], golds: Sequence[str]) -> str:
    """Mean and half of its 95 % interval; of each number where answers hold several (boxes: of all four)."""
    if skill.is_text:
        right = np.array([[a.strip() == b.strip()] for a, b in zip(replies, golds, strict=True)], float)
    elif skill.kind == "box":
        right = np.array([[_box_error(a, b)] for a, b in zip(replies, golds, strict=True)])
    else:
        right = np.array([numbers_error(a, b) for a, b in zip(replies, golds, strict=True)])
    half = 1.96 * right.std(axis=0) / np.sqrt(len(right))
    return ", ".join(f"{a:.2f} ± {b:.2f}" for a, b in zip(right.mean(axis=0), half, strict=True))


def _box_error(reply: str, gold: str) -> float:
    """Mean difference of the four coordinates, 0-1000; the whole picture counts as said where it has not four."""
    said, true = ([int(value) for value in re.findall(r"\d+", text)[:4]] for text in (reply, gold))
    return float(np.mean(np.abs(np.subtract(said if len(said) == 4 else [0, 0, 1000, 1000], true)).clip(max=1000)))


@app.command()
def main(
    model: Annotated[Path, typer.Argument(help="a model's folder")],
    views: Annotated[Path, typer.Option(help="heldout112 and heldout224 of a pretraining: OUT/views")],
    n: Annotated[int, typer.Option(min=2, help="questions a skill")] = 200,
    only: Annotated[str, typer.Option(help="skills whose name holds this")] = "",
) -> None:
    """Print the table of a model's skills."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, dtype=torch.float32, use_safetensors=True).eval()
    torch.set_float32_matmul_precision("medium")
    speed_up_vision(loaded)
    sets = {size: SpotSet.load(views / f"heldout{size}") for size in (112, 224)}
    for skill in SKILLS:
        if only in skill.name:
            found = measure(loaded, tokenizer, skill, sets[skill.size], n)
            print(f"| {skill.name} | {found['true']} | ({found['swapped']}) |", flush=True)


if __name__ == "__main__":
    run_command(app)
