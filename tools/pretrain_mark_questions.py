"""What is asked about marks and named things (`pretrain_marks`)."""

from __future__ import annotations

import math
import random

import numpy as np

from tools.pretrain_data import CELL_PX, THINGS, cell_name, seen_from
from tools.pretrain_marks import Asked, Place, Shown, first_spot

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
