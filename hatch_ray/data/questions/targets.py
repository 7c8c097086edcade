"""How questions pick the things that they mark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from hatch_ray.data.pairs import POINTS_A_VIEW, Refused, ViewTuple
from hatch_ray.data.visibility import MIN_MARK_GAP_PX, REFERENCE_WIDTH, Target
from hatch_ray.sample import Mark, MarkColor

CENTERS = " Measure at centers."
"""Ends a question about objects: every gold uses the centre of the object's box (SPAR says so too)."""

MarkKind = Literal["point", "box", "none"]


def point_mark(target: Target, color: MarkColor) -> Mark:
    """A point on the target."""
    return Mark(target.view, color, tuple(float(value) for value in target.pixel))


def box_mark(target: Target, color: MarkColor) -> Mark:
    """The target's box; a surface point, which has none, gets a point."""
    if target.box is None:
        return point_mark(target, color)
    return Mark(target.view, color, tuple(float(value) for value in target.box))


def named(views: ViewTuple, target: Target, color: MarkColor, kind: MarkKind = "point") -> str:
    """How a question calls a marked thing: "red chair (blue point, image 1)"; one view needs no image number."""
    mark = f"{color} bbox" if kind == "box" and target.box is not None else f"{color} point"
    if len(views) > 1:
        return target.phrase(mark)
    return f"{target.name} ({mark})" if target.name else mark


def boxed(views: ViewTuple, targets: Mapping[MarkColor, Target]) -> tuple[dict[str, str], tuple[Mark, ...]]:
    """({colour: how the question calls it}, box marks) of things by colour, in the order given."""
    names: dict[str, str] = {color: named(views, target, color, "box") for color, target in targets.items()}
    return names, tuple(box_mark(target, color) for color, target in targets.items())


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
