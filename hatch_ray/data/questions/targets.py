"""How questions pick the things that they mark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from hatch_ray.data.pairs import POINTS_A_VIEW, Refused, ViewTuple
from hatch_ray.data.questions.registry import Question, phrase
from hatch_ray.data.visibility import MIN_MARK_GAP_PX, REFERENCE_WIDTH, Target
from hatch_ray.sample import Mark, MarkColor

CENTERS = " Measure at centers."
"""Ends a question about objects: every gold uses the centre of the object's box (SPAR says so too)."""

MarkKind = Literal["point", "box", "none"]


def ask(
    template: str, views: ViewTuple, rng: np.random.Generator, things: Mapping[MarkColor, Target], answer: str,
    gold: dict[str, Any], kind: MarkKind, end: str = "", wrong: tuple[str, ...] = (), hint: str = "", **words: str,
) -> Question:  # fmt: skip
    """A question about things that are marked, in the order given: a template with their names and `words`, then `end`.

    The gold gets their centres. A surface point, which has no box, gets a point.
    """
    names = {color: named(views, target, color, kind) for color, target in things.items()}
    marks = tuple(mark_of(target, color, kind) for color, target in things.items())
    text = phrase(template, rng, **names, **words)
    return Question(text + end, answer, gold | {"points": centers(things.values())}, marks, wrong, hint)


def centers(things: Iterable[Target]) -> list[list[float]]:
    """Their places in the world, for the gold."""
    return [thing.center.tolist() for thing in things]


def ending(target: Target) -> str:
    """What closes a question about objects; a surface point has no centre."""
    return CENTERS if target.name else ""


def mark_of(target: Target, color: MarkColor, kind: MarkKind) -> Mark:
    """A point on the target, or its box where it has one."""
    place = target.box if kind == "box" and target.box else target.pixel
    return Mark(target.view, color, tuple(float(value) for value in place))


def named(views: ViewTuple, target: Target, color: MarkColor, kind: MarkKind) -> str:
    """How a question calls a marked thing: "red chair (blue point, image 1)"; one view needs no image number."""
    mark = f"{color} bbox" if kind == "box" and target.box else f"{color} point"
    if len(views) > 1:
        return f"{target.name} ({mark}, image {target.view})" if target.name else f"{mark} in image {target.view}"
    return f"{target.name} ({mark})" if target.name else mark


def box_text(box: Sequence[int]) -> str:
    """A box as SPAR writes it."""
    return "[" + ",".join(map(str, box)) + "]"


def marks_apart(a: Target, b: Target) -> bool:
    """Whether two point marks can be told apart: in different views, or 40 pixels from each other at width 640."""
    return a.view != b.view or math.dist(a.pixel, b.pixel) >= MIN_MARK_GAP_PX * 1000 / REFERENCE_WIDTH


def boxes_apart(a: Target, b: Target) -> bool:
    """Whether two box marks can be told apart: in different views, or without a common pixel."""
    if a.box is None or b.box is None:
        return marks_apart(a, b)
    beside = a.box[2] <= b.box[0] or b.box[2] <= a.box[0] or a.box[3] <= b.box[1] or b.box[3] <= a.box[1]
    return a.view != b.view or beside


def different(a: Target, b: Target) -> bool:
    """Whether two targets are two things: not one object seen twice."""
    return a is not b and (a.object_id != b.object_id or a.object_id < 0)


def two_targets(views: ViewTuple, rng: np.random.Generator) -> tuple[Target, Target]:
    """Two different things, marked in different views where that is possible, so that the views must be compared.

    Raises Refused when the views do not show two such things.
    """
    targets = views.targets(rng)
    pairs = [(a, b) for a in targets for b in targets if different(a, b) and marks_apart(a, b)]
    pairs = [(a, b) for a, b in pairs if a.view != b.view] or pairs
    if not pairs:
        raise Refused("fewer_than_two_visible_things")
    return pairs[int(rng.integers(len(pairs)))]


def one_target(views: ViewTuple, rng: np.random.Generator) -> Target:
    """One thing, marked in another view than the first where that is possible.

    Raises Refused when the views show nothing.
    """
    targets = views.targets(rng)
    targets = [target for target in targets if target.view > 0] or targets
    if not targets:
        raise Refused("no_visible_thing")
    return targets[int(rng.integers(len(targets)))]


def several_targets(
    views: ViewTuple, rng: np.random.Generator, count: int, marks: MarkKind, fewest: int = 0
) -> list[Target]:
    """Up to `count` different things in random order, from as many views as possible, their marks apart.

    Raises Refused when the views do not show `fewest` (0: `count`) of them.
    """
    targets = views.targets(rng, POINTS_A_VIEW if len(views) > 1 else 2 * count)
    apart = {"point": marks_apart, "box": boxes_apart, "none": different}[marks]
    order = [targets[index] for index in rng.permutation(len(targets))]
    chosen: list[Target] = []
    for from_new_view in (True, False):
        for target in order:
            if from_new_view and any(target.view == other.view for other in chosen):
                continue
            if len(chosen) < count and all(different(target, other) and apart(target, other) for other in chosen):
                chosen.append(target)
    if len(chosen) < (fewest or count):
        raise Refused("too_few_visible_things")
    return [chosen[index] for index in rng.permutation(len(chosen))]
