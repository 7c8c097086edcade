"""What a base model can do of its own: short questions over rendered rooms, asked before and after a stage.

They lie beside the weights, in skills.json: rooms by seed, views, question, answer (`tools/tiny_skills.py` writes
hatch-tiny's). A model folder without that file names no skills.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from hatch_ray.data.markers import draw_marks
from hatch_ray.data.rooms import Room, RoomOptions
from hatch_ray.learning.pixels import PixelCache
from hatch_ray.model.base import eos_token_ids
from hatch_ray.model.prompt_tokens import Prompt, tokenize_prompt
from hatch_ray.model.source import model_source
from hatch_ray.sample import Mark

FILE = "skills.json"
BATCH = 64
"""Questions that are answered at the same time."""
SPARE_TOKENS = 2
"""A reply may be longer than the longest right one by so many tokens."""
NUMBER = re.compile(r"(left|west|south)?[a-z]*?(\d+(?:\.\d+)?)")
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)

Unit = Literal["deg", "m", "right"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SkillQuestion(_Part):
    """One question behind views of the room of this seed. marks: drawn on them; `Mark.view` counts the views shown."""

    skill: str
    room: int
    views: tuple[int, ...]
    question: str
    answer: str
    marks: tuple[Mark, ...] = ()


class Skills(_Part):
    """All of skills.json.

    rooms      options of the rooms, all others as by default.
    units      skill -> what a reply is judged by: the error of its first number in degrees or metres (after "left",
               "west" or "south" it is negative; no number counts as 0), or "right": 1 where it is the answer.
    """

    rooms: RoomOptions
    units: dict[str, Unit]
    questions: tuple[SkillQuestion, ...]

    def scenes(self) -> list[str]:
        """The room of each question."""
        return [f"room-{question.room}" for question in self.questions]


def read_skills(base: str | Path) -> Skills | None:
    """The skills beside a model's weights; None where no file names any. Raises ValueError for a broken file."""
    path = Path(model_source(base)) / FILE
    if not path.is_file():
        return None
    try:
        skills = Skills.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {place}: {first['msg']}; write it again, or delete it") from None
    if unknown := sorted({question.skill for question in skills.questions} - skills.units.keys()):
        raise ValueError(f"{path} has questions of {unknown[0]!r}, whose unit it does not give")
    return skills


class SkillTest:
    """The questions ready to be asked, once for all models: rooms rendered, images processed, prompts tokenised."""

    def __init__(self, skills: Skills, processor: Any) -> None:
        self.skills, self.processor = skills, processor
        rooms = {seed: Room(seed, skills.rooms) for seed in {question.room for question in skills.questions}}
        pixels = PixelCache(processor)
        self._prompts = [_prompt(question, rooms[question.room], pixels) for question in skills.questions]
        tokenizer = processor.tokenizer
        answers = [f"<answer>{question.answer}</answer>" for question in skills.questions]
        self._new_tokens = max(map(len, tokenizer(answers)["input_ids"])) + 1 + SPARE_TOKENS

    def judge(self, model: Any) -> np.ndarray:
        """(questions,): how far greedy replies are off, in the skill's unit; or whether they are right, 1 or 0."""
        replies = [
            reply
            for start in range(0, len(self._prompts), BATCH)
            for reply in self._replies(model, self._prompts[start : start + BATCH])
        ]
        judged = zip(self.skills.questions, replies, strict=True)
        return np.array([score(reply, one.answer, self.skills.units[one.skill]) for one, reply in judged])

    @torch.no_grad()
    def _replies(self, model: Any, prompts: Sequence[Prompt]) -> list[str]:
        tokenizer, device = self.processor.tokenizer, model.device
        length = max(len(prompt.token_ids) for prompt in prompts)
        padding = tokenizer.pad_token_id
        ids = torch.tensor([[padding] * (length - len(one.token_ids)) + [*one.token_ids] for one in prompts])
        mask = torch.tensor([[0] * (length - len(one.token_ids)) + [1] * len(one.token_ids) for one in prompts])
        images = [image for prompt in prompts for image in prompt.images]
        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            mm_token_type_ids=(ids == model.config.image_token_id).int().to(device),
            pixel_values=torch.cat([image.pixels for image in images]).to(device),
            image_grid_thw=torch.tensor([image.grid for image in images], device=device),
            max_new_tokens=self._new_tokens,
            do_sample=False,
            eos_token_id=eos_token_ids(model, self.processor),
            pad_token_id=padding,
        )
        texts = tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        return [found[1].strip() if (found := ANSWER.search(text)) else "" for text in texts]


def _prompt(question: SkillQuestion, room: Room, pixels: PixelCache) -> Prompt:
    def image(index: int) -> Image.Image:
        marks = [mark for mark in question.marks if mark.view == index]
        return draw_marks(Image.fromarray(room.frame(question.views[index]).rgb), marks)

    content: list[dict[str, str]] = []
    patches = []
    for index, view in enumerate(question.views):
        content += [{"type": "text", "text": f"Image {index}: "}, {"type": "image"}, {"type": "text", "text": "\n"}]
        marks = tuple(mark for mark in question.marks if mark.view == index)
        patches.append(pixels.get((room.id, view, marks), lambda index=index: image(index)))  # type: ignore[misc]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question.question}]}]
    text = pixels.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenize_prompt(pixels.processor, text, patches)


def score(reply: str, answer: str, unit: Unit) -> float:
    """How far a reply is off (deg, at most 180; m), or 1 where it is right."""
    if unit == "right":
        return float(reply == answer)
    error = abs(_first_number(reply) - _first_number(answer))
    return min(error % 360, 360 - error % 360) if unit == "deg" else error


def signed_numbers(text: str) -> list[float]:
    """Numbers in order; after "left", "west" and "south" negative."""
    return [-float(number) if sign else float(number) for sign, number in NUMBER.findall(text)]


def _first_number(text: str) -> float:
    return next(iter(signed_numbers(text)), 0.0)
