"""How questions pick the things that they mark."""

from __future__ import annotations

import math

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.visibility import MIN_MARK_GAP_PX, REFERENCE_WIDTH, Target
from hatch_ray.sample import Mark, MarkColor

CENTERS = " Measure at centers."
"""Ends a question about objects: every gold uses the centre of the object's box (SPAR says so too)."""


def point_mark(target: Target, color: MarkColor) -> Mark:
    """A point on the target."""
    return Mark(target.view, color, tuple(float(value) for value in target.pixel))


def box_mark(target: Target, color: MarkColor) -> Mark:
    """The target's box; a surface point, which has none, gets a point."""
    if target.box is None:
        return point_mark(target, color)
    return Mark(target.view, color, tuple(float(value) for value in target.box))


def marks_apart(a: Target, b: Target) -> bool:
    """Whether two point marks can be told apart: in different views, or 40 pixels from each other at width 640."""
    return a.view != b.view or math.dist(a.pixel, b.pixel) >= MIN_MARK_GAP_PX * 1000 / REFERENCE_WIDTH


def two_targets(views: ViewTuple, rng: np.random.Generator) -> tuple[Target, Target]:
    """Two different things, marked in different views where that is possible, so that the views must be compared.

    Raises Refused when the views do not show two such things.
    """
    targets = views.targets(rng)
    pairs = [
        (a, b)
        for a in targets
        for b in targets
        if a is not b and (a.object_id != b.object_id or a.object_id < 0) and marks_apart(a, b)
    ]
    pairs = [(a, b) for a, b in pairs if a.view != b.view] or pairs
    if not pairs:
        raise Refused("fewer_than_two_visible_things")
    return pairs[int(rng.integers(len(pairs)))]
