"""The registry of question types. A new task is one function with the `task` decorator in a module of this package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hatch_ray.data.pairs import ViewTuple
from hatch_ray.sample import AnswerForm, Mark


@dataclass(frozen=True)
class Question:
    """What a task makes of some views.

    gold: the answer in full precision, as plain JSON values.
    """

    text: str
    answer: str
    gold: dict[str, Any]
    marks: tuple[Mark, ...] = field(default=())


Maker = Callable[[ViewTuple, np.random.Generator], Question]


@dataclass(frozen=True)
class Task:
    """A question type.

    views          how many views SPAR gives it.
    fewest_views   the smallest number that still makes sense, when the config asks for fewer views.
    needs_objects  whether it needs objects with boxes and masks; others take surface points where there are none.
    make           (views, rng) -> Question; raises pairs.Refused when these views cannot give it.
    """

    name: str
    views: int
    fewest_views: int
    form: AnswerForm
    needs_objects: bool
    make: Maker


TASKS: dict[str, Task] = {}


def task(
    name: str, *, views: int, form: AnswerForm, needs_objects: bool = False, fewest_views: int = 2
) -> Callable[[Maker], Maker]:
    """Register the decorated function under SPAR's task name."""

    def register(make: Maker) -> Maker:
        assert name not in TASKS, f"task {name} is registered twice"
        TASKS[name] = Task(name, views, fewest_views, form, needs_objects, make)
        return make

    return register


def choose_tasks(names: list[str], has_objects: bool) -> list[Task]:
    """The tasks asked for (empty: all) that the data can give.

    Raises ValueError naming an unknown task, or one that needs objects where there are none.
    """
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise ValueError(f"unknown task {unknown[0]!r}; known tasks: {', '.join(sorted(TASKS))}")
    chosen = [TASKS[name] for name in names or TASKS]
    if has_objects:
        return chosen
    if names and any(item.needs_objects for item in chosen):
        needy = next(item.name for item in chosen if item.needs_objects)
        raise ValueError(f"task {needy} needs objects with boxes, which posed RGB-D frames do not have; remove it")
    return [item for item in chosen if not item.needs_objects]


def pick(templates: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of the paraphrases."""
    return templates[int(rng.integers(len(templates)))]
