"""Marks drawn into views as the questions of every system draw them, and what is asked about them.

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
from tools.pretrain_data import CELL_PX, THINGS, cell_name, seen_from
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


ONE = ("cell", "thing", "depth", "where", "turned", "match", "box")
TWO = ("distance", "nearer", "higher")
ACROSS = ("same", "equal")
MARK_QUESTIONS = (*ONE, *TWO, *ACROSS)
"""turned: a place of a later view, as an earlier one's camera sees it. same, equal: of numbered circles."""
WEIGHTS = {
    "plain": {"cell": 3, "depth": 1, "where": 3, "turned": 1, "box": 3, "distance": 1},
    "colors": {"cell": 3, "thing": 2, "depth": 3, "where": 2, "turned": 2, "match": 1, "box": 2, "distance": 3,
               "nearer": 2, "higher": 1},
    "numbers": {"cell": 3, "thing": 1, "depth": 2, "where": 1, "turned": 1, "distance": 1, "nearer": 1, "higher": 1,
                "same": 5, "equal": 2},
}  # fmt: skip
BY_NAME = 0.3
"""Share of the questions about one place that name a thing, where marks are drawn."""
CLEARLY = 1.15
"""Two depths are compared where one is that many times the other; two heights where they differ by 0.25 m."""


def ask_about(kind: str, shown: Shown, rng: random.Random, by_name: float = BY_NAME) -> Asked | None:
    """One question of a kind about marks or named things, or None where these views have none."""
    marked = [place for places in shown.marked for place in places]
    things = [place for places in shown.things for place in places]
    if kind in ONE:
        named = not marked or rng.random() < by_name
        pool = things if named or (kind == "box" and shown.style == "numbers") else marked
        if kind == "box":
            pool = [place for place in pool if place.box is not None] or things
        if kind == "thing":
            pool = marked
        if kind == "match":
            pool = [place for place in marked if place.spot >= 0]
        if kind == "turned":
            pool = [place for place in pool if place.view > 0]
        if not pool:
            return None
        return _ask_one(kind, shown, rng.choice(pool), rng)
    if kind in ACROSS:
        return _ask_same(kind, shown, rng) if shown.style == "numbers" else None
    pool = marked if len(marked) > 1 and (kind != "distance" or rng.random() >= by_name) else things
    if len(pool) < 2 or (kind != "distance" and pool is things):
        return None
    first, second = sorted(rng.sample(pool, 2), key=lambda place: place.view)
    start = f"{kind}{first.text} "
    question = f"{start}{second.text}?"
    ends = ((len(start) - 1, first), (len(question) - 1, second))
    if kind == "distance":
        gap = float(np.linalg.norm(first.point - second.point))
        return Asked(kind, question, f"{gap:.1f}", ends) if gap > 0.2 else None
    if first.label == second.label:
        return None
    if kind == "nearer":
        far = [depth_of(shown, place) for place in (first, second)]
        if max(far) < CLEARLY * min(far):
            return None
        return Asked(kind, question, (first if far[0] < far[1] else second).label, ends)
    if abs(first.point[2] - second.point[2]) < 0.25:
        return None
    return Asked(kind, question, (first if first.point[2] > second.point[2] else second).label, ends)


def depth_of(shown: Shown, place: Place) -> float:
    """z of the place in the camera of its own view, by the view's level heading: pitch is small."""
    views, index = shown.views, shown.indices[place.view]
    heading = math.radians(float(views.heading[shown.room, index]))
    step = place.point - views.position[shown.room, index]
    return float(step[0] * math.sin(heading) + step[1] * math.cos(heading))


def _ask_one(kind: str, shown: Shown, place: Place, rng: random.Random) -> Asked | None:
    views, room = shown.views, shown.room
    index = shown.indices[place.view]
    question = f"{'patch' if kind == 'thing' else kind}{place.text}"
    end = ((len(question), place),)
    match kind:
        case "cell":
            return Asked(kind, f"{question}?", cell_name(shown.cell(place), views.grid), end)
        case "thing":
            return Asked(kind, f"{question}?", THINGS[place.thing], end)
        case "depth":
            depth = depth_of(shown, place)
            return Asked(kind, f"{question}?", f"{depth:.1f}", end) if depth > 0.3 else None
        case "where":
            return Asked(kind, f"{question}?", seen_from(views, room, index, place.point), end)
        case "turned":
            earlier = rng.randrange(place.view)
            question = f"from{earlier}mark{place.text}"
            answer = seen_from(views, room, shown.indices[earlier], place.point)
            return Asked(kind, f"{question}?", answer, ((len(question), place),))
        case "match":
            other = rng.choice([k for k in range(len(shown.indices)) if k != place.view])
            pixel = views.spot_in[room, index, shown.indices[other], place.spot]
            if pixel[0] < 0 and rng.random() < 0.6:
                return None
            column, row = pixel // CELL_PX
            answer = cell_name(int(row) * views.grid + int(column), views.grid) if pixel[0] >= 0 else "none"
            return Asked(kind, f"{question}in{other}?", answer, end)
        case "box":
            assert place.box is not None
            return Asked(kind, f"{question}?", ",".join(str(round(1000 * value)) for value in place.box), end)
    raise ValueError(f"no question kind {kind!r}")


def _ask_same(kind: str, shown: Shown, rng: random.Random) -> Asked | None:
    if not shown.marked[0] or not all(shown.marked):
        return None
    first = rng.choice(shown.marked[0])
    later = rng.randrange(1, len(shown.marked))
    partner = next((place for place in shown.marked[later] if first_spot(place) == first.spot), None)
    if kind == "same":
        question = f"same{first.text}in{later}?"
        end = len(question) - len(f"in{later}?")
        return Asked(kind, question, partner.label if partner else "none", ((end, first),), partner)
    second = partner if partner and rng.random() < 0.5 else rng.choice(shown.marked[later])
    start = f"equal{first.text} "
    question = f"{start}{second.text}?"
    ends = ((len(start) - 1, first), (len(question) - 1, second))
    return Asked(kind, question, "yes" if second is partner else "no", ends)


def draw_asked(shown: Shown, n: int, rng: random.Random) -> list[Asked]:
    """n different questions about marks and named things of these views, in random order; fewer where that is hard."""
    weights = WEIGHTS[shown.style]
    row: dict[str, Asked] = {}
    for _ in range(6 * n):
        if len(row) == n:
            break
        asked = ask_about(rng.choices(tuple(weights), tuple(weights.values()))[0], shown, rng)
        if asked is not None:
            row[asked.question] = asked
    return list(row.values())


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
