"""The registry of question types. A new task is one function with the `task` decorator in a module of this package."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from hatch_ray.data.pairs import ViewTuple
from hatch_ray.sample import AnswerForm, Mark

Format = Literal["fill", "select", "sentence"]
"""SPAR's answer formats: a bare value, a letter, free text."""
TEMPLATES: dict[str, list[str]] = yaml.safe_load((Path(__file__).parent / "templates.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Question:
    """What a task makes of some views.

    gold   the answer in full precision, as plain JSON values.
    wrong  wrong answers that the task knows of, for the select format (`choices.as_choice` finds the others).
    hint   the part of the text that says how to write the answer; the select format leaves it out.
    """

    text: str
    answer: str
    gold: dict[str, Any]
    marks: tuple[Mark, ...] = field(default=())
    wrong: tuple[str, ...] = field(default=())
    hint: str = ""


Maker = Callable[[ViewTuple, np.random.Generator], Question]


@dataclass(frozen=True)
class Task:
    """A question type.

    views          how many views SPAR gives it; where the config asks for fewer, two at least of several.
    form           what the answer of `make` looks like.
    formats        SPAR's formats of the task. "letter" tasks have select alone; of the others select is made from fill.
    needs_objects  whether it needs objects with boxes and masks; others take surface points where there are none.
    needs_depth    whether it asks about things or points; of cameras alone poses tell all.
    make           (views, rng) -> Question; raises pairs.Refused when these views cannot give it.
    """

    name: str
    views: int
    form: AnswerForm
    formats: tuple[Format, ...]
    needs_objects: bool
    needs_depth: bool
    make: Maker

    def formats_among(self, asked: Collection[str]) -> tuple[Format, ...]:
        """The task's formats that are asked for; where it has none of them, the one that it has."""
        return tuple(name for name in self.formats if name in asked) or self.formats[:1]


TASKS: dict[str, Task] = {}

GROUPS: dict[str, Callable[[Task], bool]] = {
    "multi": lambda item: item.views > 1,
    "single": lambda item: item.views == 1,
}
"""Names for several tasks at once: over several views, as the paper trains, and over one. Tasks that are a sentence
only, which no reward judges, belong to neither."""


def task(
    name: str,
    *,
    views: int,
    form: AnswerForm,
    formats: tuple[Format, ...] | None = None,
    needs_objects: bool = False,
    needs_depth: bool = True,
) -> Callable[[Maker], Maker]:
    """Register the decorated function under SPAR's task name; `formats` is fill and select unless said otherwise."""

    def register(make: Maker) -> Maker:
        assert name not in TASKS, f"task {name} is registered twice"
        usual: tuple[Format, ...] = ("select",) if form == "letter" else ("fill", "select")
        TASKS[name] = Task(name, views, form, formats or usual, needs_objects, needs_depth, make)
        return make

    return register


def choose_tasks(names: list[str], has_objects: bool) -> list[Task]:
    """The tasks asked for, by name or group (empty: ["multi"]), that the data can give, each once.

    Raises ValueError naming an unknown task, or one asked for by name that needs objects where there are none.
    """
    chosen: dict[str, Task] = {}
    for name in names or ["multi"]:
        if name in TASKS:
            found = [TASKS[name]]
            if found[0].needs_objects and not has_objects:
                raise ValueError(
                    f"task {name} needs objects with boxes, which posed RGB-D frames do not have; remove it"
                )
        elif name in GROUPS:
            found = [item for item in TASKS.values() if GROUPS[name](item) and item.formats != ("sentence",)]
        else:
            raise ValueError(f"unknown task {name!r}; known tasks: {', '.join([*GROUPS, *sorted(TASKS)])}")
        chosen |= {item.name: item for item in found if has_objects or not item.needs_objects}
    return list(chosen.values())


def phrase(template: str, rng: np.random.Generator, **words: str) -> str:
    """One of the paraphrases of templates.yaml, its words filled in."""
    return TEMPLATES[template][int(rng.integers(len(TEMPLATES[template])))].format(**words)
