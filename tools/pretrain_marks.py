"""Marks drawn into views as the questions of every system draw them (what is asked: `pretrain_mark_questions`).

A question names places: `0:red point` (a coloured disc on view 0), `1:blue box`, `0:mark3` (a numbered circle), or `0
red chair` (a thing by its name). A disc or a circle stands for the surface under it, a box or a name for an object's
centre.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from hatch_ray.data.markers import COLORS, draw_marks, point_radius
from hatch_ray.data.numbered import circle_radius, footprint, thousandth
from hatch_ray.sample import Mark
from tools.pretrain_data import THINGS
from tools.pretrain_spots import SpotSet

Style = Literal["colors", "numbers", "plain"]
LARGEST = {112: 4, 224: 12}
"""Numbered circles a view, by its size."""


@dataclass(frozen=True)
class Place:
    """Something that a question names. mark: how it is named behind its view; label: how an answer names it ("red",
    "3"), "" for a thing by its name. point (3,) world; pixel (2,) in 0-1 of the view, where it is seen; box (4,) in 0-1
    or None; spot: index of its spot, or -1 where it is an object.
    """

    view: int
    mark: str
    label: str
    point: np.ndarray
    pixel: tuple[float, float]
    box: tuple[float, ...] | None
    thing: int
    spot: int

    @property
    def text(self) -> str:
        return f"{self.view}{self.mark}"


@dataclass(frozen=True)
class Asked:
    """A question. named: the places in it, each with the characters up to its end; found: the answer's place."""

    kind: str
    question: str
    answer: str
    named: tuple[tuple[int, Place], ...] = ()
    found: Place | None = None


@dataclass(frozen=True)
class Shown:
    """Views with marks on them: images (n, H, W, 3), and by view what is marked and what can be named."""

    views: SpotSet
    room: int
    indices: tuple[int, ...]
    style: Style
    images: np.ndarray
    marked: tuple[tuple[Place, ...], ...]
    things: tuple[tuple[Place, ...], ...]

    def cell(self, place: Place) -> int:
        """Index of the cell that shows the place."""
        grid = self.views.grid
        column, row = (min(grid - 1, int(value * grid)) for value in place.pixel)
        return row * grid + column


def show(
    views: SpotSet, room: int, indices: tuple[int, ...], style: Style, rng: random.Random, full: bool = False
) -> Shown:
    """Draw marks of this style into the views, as many as there is place for if `full`; find what can be named."""
    things = tuple(_things(views, room, index, k) for k, index in enumerate(indices))
    match style:
        case "plain":
            marked: list[list[Place]] = [[] for _ in indices]
        case "colors":
            marked = [
                _colored(views, room, index, k, things[k], 4 if full else None, rng) for k, index in enumerate(indices)
            ]
        case "numbers":
            marked = _numbered(views, room, indices, full, rng)
    images = np.stack([views.rgb[room, index] for index in indices])
    for k, places in enumerate(marked):
        if places:
            marks = [_mark_of(place, views.size) for place in places]
            images[k] = np.asarray(draw_marks(Image.fromarray(images[k]), marks))
    return Shown(views, room, indices, style, images, tuple(map(tuple, marked)), things)


def _mark_of(place: Place, size: int) -> Mark:
    if place.label not in COLORS:
        return Mark(place.view, "green", _thousandths(place, size), place.label)
    if place.mark.endswith("box"):
        return Mark(place.view, place.label, tuple(1000 * value for value in place.box or ()))  # type: ignore[arg-type]
    return Mark(place.view, place.label, _thousandths(place, size))  # type: ignore[arg-type]


def _thousandths(place: Place, size: int) -> tuple[float, ...]:
    return tuple(float(thousandth(int(value * size), size)) for value in place.pixel)


def _things(views: SpotSet, room: int, index: int, k: int) -> tuple[Place, ...]:
    places = []
    for thing in range(views.box.shape[2]):
        box = tuple(float(value) / 1000 for value in views.box[room, index, thing])
        if box[0] >= 0:
            name = int(views.name[room, thing])
            middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            places.append(Place(k, f" {THINGS[name]}", "", views.center[room, thing], middle, box, name, -1))
    return tuple(places)


def _spot(views: SpotSet, room: int, index: int, k: int, spot: int, mark: str, label: str) -> Place:
    pixel = tuple((float(value) + 0.5) / views.size for value in views.spot_pixel[room, index, spot])
    point, thing = views.spot_point[room, index, spot], int(views.spot_thing[room, index, spot])
    return Place(k, mark, label, point, pixel, None, thing, spot)  # type: ignore[arg-type]


def _colored(
    views: SpotSet, room: int, index: int, k: int, things: tuple[Place, ...], count: int | None, rng: random.Random
) -> list[Place]:
    """One to four marks of different colours; one in four is a box where the view shows a thing."""
    places: list[Place] = []
    free = list(things)
    rng.shuffle(free)
    for color in rng.sample(tuple(COLORS), count or rng.choice((1, 2, 2, 3, 4))):
        if free and rng.random() < 0.25:
            thing = free.pop()
            mark = f":{color} box"
            places.append(Place(k, mark, color, thing.point, thing.pixel, thing.box, thing.thing, -1))
            continue
        for _ in range(5):
            place = _spot(views, room, index, k, rng.randrange(views.spot_pixel.shape[2]), f":{color} point", color)
            if all(math.dist(place.pixel, other.pixel) * views.size > 3 * point_radius(views.size) for other in places):
                places.append(place)
                break
    # Boxes first: a disc stays whole.
    return sorted(places, key=lambda place: place.box is None)


def _numbered(views: SpotSet, room: int, indices: tuple[int, ...], full: bool, rng: random.Random) -> list[list[Place]]:
    """Numbered circles on every view; where a later view shows a spot of the first, often a circle marks it there too.

    Circles of one view keep their footprint apart; one that marks nothing of the first view also keeps away from the
    places where its spots are seen.
    """
    most = max(LARGEST.values()) if full else LARGEST[views.size]
    guard = footprint(views.size, most)
    radius = circle_radius(views.size)
    count = most if full else rng.randint(2, max(2, most * 2 // 3))

    def whole(pixel: np.ndarray) -> bool:
        return bool((pixel >= radius).all() and (pixel < views.size - radius).all())

    def apart(pixel: np.ndarray, others: list[np.ndarray], least: float) -> bool:
        return all(float(np.hypot(*(pixel - other))) >= least for other in others)

    taken: list[list[tuple[int, np.ndarray, np.ndarray, int]]] = []
    for k, index in enumerate(indices):
        circles: list[tuple[int, np.ndarray, np.ndarray, int]] = []
        seen_of_first: list[np.ndarray] = []
        if k:
            for spot, _, _, _ in taken[0]:
                pixel = views.spot_in[room, indices[0], index, spot].astype(int)
                if pixel[0] < 0:
                    continue
                seen_of_first.append(pixel)
                if rng.random() < 0.8 and whole(pixel) and apart(pixel, [c[1] for c in circles], guard):
                    circles.append((spot, pixel, views.spot_point[room, indices[0], spot], 0))
        for spot in rng.sample(range(views.spot_pixel.shape[2]), 32 if full else 16):
            if len(circles) >= count + (1 if k else 0):
                break
            pixel = views.spot_pixel[room, index, spot].astype(int)
            if not (whole(pixel) and apart(pixel, [c[1] for c in circles] + seen_of_first, guard)):
                continue
            circles.append((spot, pixel, views.spot_point[room, index, spot], k))
        rng.shuffle(circles)
        taken.append(circles[:most])
    marked = []
    for k, (index, circles) in enumerate(zip(indices, taken, strict=True)):
        places = []
        numbers = sorted(rng.sample(range(1, most + 1), len(circles))) if full else range(1, len(circles) + 1)
        for number, (spot, pixel, point, owner) in zip(numbers, circles, strict=True):
            at = tuple((float(value) + 0.5) / views.size for value in pixel)
            thing = int(views.spot_thing[room, indices[owner] if owner != k else index, spot])
            own = spot if owner == k else -2 - spot
            places.append(Place(k, f":mark{number}", str(number), point, at, None, thing, own))  # type: ignore[arg-type]
        marked.append(places)
    return marked


def first_spot(place: Place) -> int | None:
    """The spot of the first view that a numbered circle marks; None where it marks one of its own view."""
    if place.view == 0:
        return place.spot
    return -2 - place.spot if place.spot <= -2 else None


def place_numbers(shown: Shown, place: Place) -> list[float]:
    """What MentionHead reads at a place's name: pixel, log depth, bearing's sine and cosine, world point, point from
    its camera (right, forward), box (zeros where it has none), and 1 where it has a box.
    """
    views, index = shown.views, shown.indices[place.view]
    heading = math.radians(float(views.heading[shown.room, index]))
    east, north = (float(value) for value in (place.point - views.position[shown.room, index])[:2])
    right = east * math.cos(heading) - north * math.sin(heading)
    forward = east * math.sin(heading) + north * math.cos(heading)
    bearing = math.atan2(right, forward)
    x, y, z = (float(value) for value in place.point)
    box = place.box or (0.5,) * 4
    return [
        *(2 * value - 1 for value in place.pixel), math.log(max(0.2, forward)), math.sin(bearing), math.cos(bearing),
        x / 2, y / 2, z, right / 2, forward / 2, *(2 * value - 1 for value in box), float(place.box is not None),
    ]  # fmt: skip
