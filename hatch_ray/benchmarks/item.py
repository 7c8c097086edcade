"""One benchmark question, whatever file it came from, and the text inside its reply's answer block."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from PIL import Image

FIRST_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class BadRowError(ValueError):
    """A row that cannot be used; the message is a short reason that is the same for all rows with this fault.

    example: the file or row that it is about, where that is known.
    """

    def __init__(self, reason: str, example: str = "") -> None:
        super().__init__(reason)
        self.example = example


@dataclass(frozen=True)
class Item:
    """A question to ask.

    id        names the row within its benchmark.
    task      the class that is reported by itself: SPAR's task, MindCube's setting, MMSI's type, CV-Bench's task.
    group     the unit that the paper's columns are made of: the task again, but MMSI's group and CV-Bench's source.
    form      what the prompt says that the answer looks like.
    question  the text as published, options included.
    gold      the answer as published.
    cluster   rows of one scene share it, for the intervals; the row's id where the scene is unknown.
    n_images  number of images.
    images    gives the images as the model may see them, each with at most the given number of pixels; raises
              BadRowError when one cannot be read.
    parts     of which source, level, .. it is, where the benchmark is told by such parts.
    """

    id: str
    task: str
    group: str
    form: str
    question: str
    gold: str
    cluster: str
    n_images: int
    images: Callable[[int], list[Image.Image]]
    parts: Mapping[str, str] = field(default_factory=dict)


def tagged_answer(completion: str) -> str:
    """The text inside the first closed answer block, stripped; the whole completion when there is none."""
    found = FIRST_ANSWER.search(completion)
    return found.group(1).strip() if found else completion
