"""One record of SPAR-7M as question, answer and marks, or the reason why it cannot be used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from hatch_ray.data.refusals import Refusal
from hatch_ray.data.spar.layout import TASKS, answer_form, scene_of
from hatch_ray.protocol.prompt import SPECIAL_TOKEN
from hatch_ray.protocol.values import gold_fault
from hatch_ray.sample import AnswerForm, Mark, MarkColor

PLACEHOLDER = re.compile(r"<image>\s*")
LETTER = re.compile(r"\(?\s*([A-Da-d])(?![A-Za-z0-9])")
MARK_RANGE = (0.0, 1000.0)
LISTED_COLOR: MarkColor = "blue"
"""The published code draws a listed box with a BGR red on an RGB array: blue."""


@dataclass(frozen=True)
class Record:
    """A usable row, without its views. images are paths below the source's images folder."""

    id: str
    scene: str
    task: str
    format: str
    form: AnswerForm
    question: str
    answer: str
    images: tuple[str, ...]
    depths: tuple[str, ...] | None
    marks: tuple[Mark, ...]


def read_record(raw: dict[str, Any], form: str) -> Record:
    """Check and translate a record of the format `form` (select, fill, sentence, judge). Raises Refusal."""
    task = raw.get("type")
    if task not in TASKS:
        raise Refusal("unknown_type", f"type is {task!r}")
    images = raw.get("image") or []
    if TASKS[task].views > 1 and len(images) < 2:
        raise Refusal("too_few_images", f"{task} has {len(images)}")
    if TASKS[task].views == 1 and len(images) != 1:
        raise Refusal("too_many_images", f"{task} has {len(images)}")
    scenes = set()
    for image in images:
        try:
            scenes.add(scene_of(image))
        except (TypeError, ValueError) as error:
            raise Refusal("bad_image_path", str(error)) from None
    if len(scenes) != 1:
        raise Refusal("images_of_several_scenes", ", ".join(sorted(scenes)))
    question, answer = _turns(raw.get("conversations"))
    kind = answer_form(task, form)
    return Record(
        id=str(raw.get("id") or ""),
        scene=scenes.pop(),
        task=task,
        format=form,
        form=kind,
        question=question,
        answer=_checked_answer(answer, kind),
        images=tuple(images),
        depths=_depths(raw.get("depth"), len(images)),
        marks=_marks(raw, task, len(images)),
    )


def _turns(conversations: Any) -> tuple[str, str]:
    """(question without image placeholders, answer)."""
    said: dict[str, str] = {}
    for turn in conversations if isinstance(conversations, list) else []:
        if isinstance(turn, dict) and isinstance(turn.get("value"), str):
            said.setdefault(str(turn.get("from")), turn["value"])
    question, answer = PLACEHOLDER.sub("", said.get("human", "")).strip(), said.get("gpt", "").strip()
    if not question:
        raise Refusal("no_question", f"conversations is {conversations!r}"[:120])
    if not answer:
        raise Refusal("no_answer", f"conversations is {conversations!r}"[:120])
    token = SPECIAL_TOKEN.search(question)
    if token:
        raise Refusal("reserved_token", f"the question holds {token.group()!r}")
    return question, answer


def _checked_answer(answer: str, form: AnswerForm) -> str:
    """The answer as the rewards can judge it; a select answer is cut to its letter. Raises Refusal."""
    if form == "letter":
        letter = LETTER.match(answer)
        if not letter:
            raise Refusal("answer_is_not_a_letter", repr(answer)[:120])
        return letter[1].upper()
    fault = gold_fault(answer, form)
    if fault is not None:
        raise Refusal(f"answer_{fault}", repr(answer)[:120])
    return answer


def _depths(value: Any, images: int) -> tuple[str, ...] | None:
    """The record's depth paths; None where it names none."""
    if not value:
        return None
    if not isinstance(value, list) or len(value) != images or not all(isinstance(path, str) for path in value):
        raise Refusal("bad_depth_list", f"depth is {value!r}"[:120])
    if any(path.startswith("/") or ".." in path.split("/") for path in value):
        raise Refusal("bad_depth_list", f"depth is {value!r}"[:120])
    return tuple(value)


def _marks(raw: dict[str, Any], task: str, images: int) -> tuple[Mark, ...]:
    rule = TASKS[task].marks
    if TASKS[task].listed:
        boxes = _unwrap(raw.get("bbox_list"), "bbox_list")
        views = _indices(raw.get("bbox_img_idx"), "bbox_img_idx", len(boxes), images)
        return tuple(
            Mark(view, LISTED_COLOR, _coordinates(box, "bbox"), f"object{number}")
            for number, (view, box) in enumerate(zip(views, boxes, strict=True))
        )
    if rule is None:
        return ()
    kind = rule.kind
    if kind == "bbox" and not any(raw.get(f"{color}_bbox") for color in rule.colors):
        # Posed RGB-D frames know no boxes: our export of them marks points instead.
        kind = "point"
    present = [(color, raw[f"{color}_{kind}"]) for color in rule.colors if raw.get(f"{color}_{kind}")]
    wanted = rule.exactly or len(rule.colors)
    if len(present) != wanted:
        names = ", ".join(color for color, _ in present) or "none"
        raise Refusal("wrong_marks", f"{task} needs {wanted} {rule.kind} marks, found {names}")
    key = f"{kind}_img_idx"
    if raw.get(key):
        views = _indices(raw[key], key, len(present), images)
    elif rule.image is not None:
        views = [rule.image] * len(present)
    else:
        raise Refusal("no_image_index", f"{key} is {raw.get(key)!r}")
    return tuple(
        Mark(view, color, _coordinates(_unwrap(value, f"{color}_{kind}"), kind))
        for view, (color, value) in zip(views, present, strict=True)
    )


def _indices(value: Any, key: str, count: int, images: int) -> list[int]:
    views = _unwrap(value, key)
    if len(views) < count or not all(
        isinstance(view, int) and not isinstance(view, bool) and 0 <= view < images for view in views[:count]
    ):
        raise Refusal("bad_image_index", f"{key} is {value!r} for {count} marks on {images} images")
    return views[:count]


def _unwrap(value: Any, key: str) -> list[Any]:
    """[[...]] -> [...]: every marker value is wrapped in one more list."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) and value[0]:
        return value[0]
    raise Refusal("bad_marker", f"{key} is {value!r}, expected one list within a list"[:160])


def _coordinates(values: Any, kind: str) -> tuple[float, ...]:
    """2 or 4 numbers in 0 to 1000; a box has a positive area."""
    count = 2 if kind == "point" else 4
    numbers = isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )
    if not numbers or len(values) != count or not all(MARK_RANGE[0] <= value <= MARK_RANGE[1] for value in values):
        raise Refusal("bad_marker", f"{values!r} is not {count} numbers in 0 to 1000")
    if count == 4 and not (values[0] <= values[2] and values[1] <= values[3]):
        raise Refusal("bad_marker", f"box {values!r} has its corners in the wrong order")
    return tuple(float(value) for value in values)
