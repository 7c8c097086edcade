"""Marks and questions of wide-baseline matching: proven by rays, drawn where they are said, the same from a seed."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hatch_ray.data.markers import draw_marks, mark_pixels
from hatch_ray.data.numbered import circle_radius, footprint, thousandth
from hatch_ray.data.pairs import Refused
from hatch_ray.sample import Mark
from hatch_ray.systems.matching.places import place_of
from hatch_ray.systems.matching.pools import depth_pool
from hatch_ray.systems.matching.questions import EXACT, HARD, LEVELS, SPREADS, Asked, Marker, faults
from tests.support.room_truth import room_of, seen_at, surface

KINDS = list(product(LEVELS, SPREADS))


def marker_of(seed: int, pair: tuple[int, int] = (0, 2)) -> Marker:
    room = room_of(seed, scale=2)
    first, second = (room.frame(index) for index in pair)
    return Marker(first, second, depth_pool(first, second, 2))


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 300), st.sampled_from([(0, 1), (1, 2), (2, 0)]), st.integers(0, 10**6))
def test_every_mark_is_where_rays_say(seed: int, pair: tuple[int, int], draw: int) -> None:
    """A mark's surface, found by a ray, lies within 4 pixels of its partner and beyond the guard of all other marks."""
    room = room_of(seed, scale=2)
    try:
        marker = marker_of(seed, pair)
    except Refused:
        return
    poses = [room.frame(index).pose for index in pair]
    asked_of_all = 0
    for level, how in KINDS:
        try:
            asked = marker.draw(level, how, np.random.default_rng(draw))
        except Refused:
            continue
        asked_of_all += 1
        same = np.array(asked.gold)[:, None] == np.arange(1, len(asked.second) + 1)
        for marks, others, here, there, partner in (
            (asked.first, asked.second, *poses, same), (asked.second, asked.first, *poses[::-1], same.T),
        ):  # fmt: skip
            points = surface(room, marks.astype(float), here)
            ahead = ((points - there[:3, 3]) @ there[:3, :3])[:, 2] > 0
            place = seen_at(room, points, there)
            away = np.hypot(*(place[:, None] - others[None]).transpose(2, 0, 1))
            away[~ahead] = np.inf
            assert (away[partner] < EXACT).all() and (away[~partner] > marker.guard).all()
    assert asked_of_all >= 5


def test_levels_have_their_numbers_and_marks_keep_apart() -> None:
    marker = marker_of(4)
    seen: dict[str, set[tuple[int, int, int]]] = {level: set() for level in LEVELS}
    for (level, how), draw in product(KINDS, range(12)):
        asked = marker.draw(level, how, np.random.default_rng(draw))
        matched = sum(gold > 0 for gold in asked.gold)
        seen[level].add((matched, len(asked.first) - matched, len(asked.second) - matched))
        assert len(set(asked.gold) - {0}) == matched
        least = max(marker.guard, SPREADS[how] * marker.width - 0.01)
        for marks, bound in ((asked.first, marker.guard), (asked.first[np.array(asked.gold) > 0], least)):
            apart = np.hypot(*(marks[:, None] - marks[None]).transpose(2, 0, 1)) + np.diag([np.inf] * len(marks))
            assert apart.min() >= bound
    for level, rule in LEVELS.items():
        for place, (low, high) in enumerate((rule.matched, rule.first, rule.second)):
            assert {count[place] for count in seen[level]} <= set(range(low, high + 1))
    assert len(seen["L1"]) == 3 and len(seen["L3"]) > 8


def test_half_of_the_distractors_are_near_to_a_mark_with_a_partner() -> None:
    marker = marker_of(4)
    reach = max(HARD[1] * marker.width, 2 * marker.apart)
    for draw in range(20):
        asked = marker.draw("L3", "dense", np.random.default_rng(draw))
        gold = np.array(asked.gold)
        for marks, alone in (
            (asked.first, gold == 0),
            (asked.second, ~np.isin(np.arange(len(asked.second)) + 1, gold)),
        ):
            gaps = np.hypot(*(marks[alone][:, None] - marks[~alone][None]).transpose(2, 0, 1)).min(axis=1)
            assert 2 * (gaps <= reach).sum() >= alone.sum()


def test_a_seed_gives_its_question_again_and_numbers_are_dealt() -> None:
    marker = marker_of(4)
    one, two = (marker.draw("L3", "sparse", np.random.default_rng(7)) for _ in range(2))
    assert one.gold == two.gold and np.array_equal(one.first, two.first) and np.array_equal(one.second, two.second)
    golds = [marker.draw("L1", "dense", np.random.default_rng(draw)).gold for draw in range(30)]
    assert len({gold[0] for gold in golds}) > 2


def test_what_is_wrong_with_a_question_is_found() -> None:
    marker = marker_of(4)
    asked = marker.draw("L1", "sparse", np.random.default_rng(0))

    def told(wrong: Asked) -> list[str]:
        return faults(wrong, marker.first, marker.second, marker.guard)

    assert told(asked) == []
    assert told(replace(asked, gold=asked.gold[1:] + asked.gold[:1]))
    assert told(replace(asked, gold=(0, *asked.gold[1:]))), "a distractor that has a partner after all"
    moved = asked.second.copy()
    moved[0] = moved[1] + 3
    assert any("apart" in fault for fault in told(replace(asked, second=moved)))
    blind = replace(marker.first, depth=np.zeros_like(marker.first.depth))
    assert faults(asked, blind, marker.second, marker.guard), "no depth proves nothing"
    assert np.isnan(place_of(asked.first.astype(float), blind, marker.second)).all()


def test_views_that_share_nothing_are_refused() -> None:
    room = room_of(4, scale=2)
    first = room.frame(0)
    away = replace(first, pose=first.pose @ np.diag([-1.0, 1, -1, 1]))
    with pytest.raises(Refused, match="too_few_matches"):
        Marker(first, away, depth_pool(first, away, 2))


@pytest.mark.parametrize("size", [112, 224, 640, 1000])
def test_a_numbered_circle_stays_inside_its_footprint(size: int) -> None:
    """What is drawn about a mark lies within the guard distance, also where the label has no room above."""
    picture = Image.new("RGB", (size, size), (90, 60, 30))
    background = np.asarray(picture)
    for label, (x, y) in product(("1", "7", "12"), ((size // 2, size // 2), (size // 2, 5), (6, size - 6))):
        mark = Mark(0, "green", (thousandth(x, size), thousandth(y, size)), label)
        assert mark_pixels(mark, size, size) == [x, y]
        drawn = np.asarray(draw_marks(picture, [mark]))
        rows, columns = np.nonzero((drawn != background).any(axis=2))
        assert np.hypot(rows - y, columns - x).max() <= footprint(size, 12)
        assert (drawn == (0, 255, 0)).all(axis=2).any() and (drawn == 0).all(axis=2).any()
        if (x, y) == (size // 2, size // 2):
            assert tuple(drawn[y, x]) == (90, 60, 30), "the place itself stays visible"
            assert tuple(drawn[y, x + circle_radius(size)]) == (0, 255, 0)


@given(st.integers(28, 1000), st.data())
def test_coordinates_in_thousandths_are_exact_to_the_pixel(size: int, data: st.DataObject) -> None:
    pixel = data.draw(st.integers(0, size - 1))
    mark = Mark(0, "green", (thousandth(pixel, size), 0), "1")
    assert mark_pixels(mark, size, size)[0] == pixel
