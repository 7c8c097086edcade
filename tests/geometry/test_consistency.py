"""The consistency of plans over triples of views, and the vote over several replies: pure code, by properties."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import RigidTransform, Rotation

from hatch_ray.geometry.actions import ATOMS, MAX_DEGREES, MAX_METRES, motion
from hatch_ray.geometry.consistency import triples
from serve.schema import Consistency
from serve.values import typed_value
from serve.votes import Ballot, elect, weight_of

finite = st.floats(-5, 5)
vectors = st.tuples(finite, finite, finite).map(np.array)
rotations = vectors.map(lambda v: Rotation.from_rotvec(v))
poses = st.tuples(vectors, rotations).map(lambda p: RigidTransform.from_components(*p))
atoms = st.sampled_from(ATOMS).flatmap(
    lambda name: st.tuples(st.just(name), st.floats(0, MAX_DEGREES if name.endswith("_deg") else MAX_METRES))
)


def relatives(cameras: list[RigidTransform]) -> dict:
    """The true motion of every pair."""
    steps = {(i, j): cameras[i].inv() * cameras[j] for i, j in combinations(range(len(cameras)), 2)}
    return {pair: (step.rotation.as_matrix(), step.translation) for pair, step in steps.items()}


@given(st.lists(poses, min_size=3, max_size=6))
def test_plans_of_real_cameras_agree(cameras):
    found = triples(relatives(cameras))
    assert [triple.views for triple in found] == list(combinations(range(len(cameras)), 3))
    assert max(triple.metres for triple in found) < 1e-9
    assert max(triple.degrees for triple in found) < 1e-5


@given(st.lists(poses, min_size=3, max_size=3), vectors, st.floats(0.01, 179), vectors)
def test_a_known_error_of_the_direct_plan_is_what_is_found(cameras, shift, angle, axis):
    if np.linalg.norm(axis) < 1e-3:
        axis = np.array([0.0, 0.0, 1.0])
    motions = relatives(cameras)
    rotation, place = motions[0, 2]
    turn = Rotation.from_rotvec(math.radians(angle) * axis / np.linalg.norm(axis)).as_matrix()
    motions[0, 2] = (rotation @ turn, place + shift)
    (triple,) = triples(motions)
    assert triple.metres == pytest.approx(np.linalg.norm(shift), abs=1e-8)
    assert triple.degrees == pytest.approx(angle, abs=1e-5)


@given(st.lists(poses, min_size=6, max_size=6), rotations, vectors)
def test_axes_of_all_cameras_turned_alike_change_nothing(noise, turn, arm):
    """Any three motions, right or wrong. Moving the cameras' centres alike as well leaves the degrees alone."""
    pairs = list(combinations(range(3), 2))
    steps = dict(zip(pairs, noise, strict=False))

    def seen(frame: RigidTransform) -> tuple[float, float]:
        moved = {pair: frame.inv() * step * frame for pair, step in steps.items()}
        (triple,) = triples({pair: (step.rotation.as_matrix(), step.translation) for pair, step in moved.items()})
        return triple.metres, triple.degrees

    metres, degrees = seen(RigidTransform.identity())
    turned = seen(RigidTransform.from_rotation(turn))
    assert turned == (pytest.approx(metres, abs=1e-6), pytest.approx(degrees, abs=1e-4))
    assert seen(RigidTransform.from_components(arm, turn))[1] == pytest.approx(degrees, abs=1e-4)


@given(st.lists(st.lists(atoms, max_size=12), min_size=6, max_size=6))
def test_whatever_plans_are_written_the_figures_are_numbers(plans):
    pairs = list(combinations(range(4), 2))
    found = triples({pair: motion(plan, None) for pair, plan in zip(pairs, plans, strict=True)})
    assert len(found) == 4
    for triple in found:
        assert 0 <= triple.metres <= 3 * 12 * MAX_METRES + 1e-6
        assert 0 <= triple.degrees <= 180


def test_only_triples_with_all_three_pairs_count():
    stay = motion((), None)
    assert triples({}) == triples({(0, 1): stay}) == triples({(0, 1): stay, (1, 2): stay}) == []
    some = {(0, 1): stay, (1, 2): stay, (0, 2): motion([("move_forward_m", 2.0)], None), (0, 3): stay}
    (triple,) = triples(some)
    assert (triple.views, triple.metres, triple.degrees) == ((0, 1, 2), 2.0, 0.0)


def test_an_arithmetic_example():
    """Right by 90 and 1 m ahead, twice: 1 m to the right and 1 m back, turned about."""
    leg = motion([("turn_right_deg", 90), ("move_forward_m", 1)], None)
    direct = motion([("turn_right_deg", 180), ("move_forward_m", 1)], None)
    (triple,) = triples({(0, 1): leg, (1, 2): leg, (0, 2): direct})
    assert triple.metres == pytest.approx(1.0)
    assert triple.degrees == pytest.approx(0.0, abs=1e-6)


# --- the vote

ANSWERS = {
    "letter": st.sampled_from(["A", "b.", "(C) left", "nonsense", "A. red"]),
    "number": st.floats(-1e6, 1e6).map(lambda x: f"{x:.3f}") | st.sampled_from(["2.4", "about 3 m", "1 or 2", "1e99"]),
    "box": st.lists(st.integers(0, 1000), min_size=4, max_size=4).map(str),
    "camera_motion": st.lists(st.integers(0, 1000), min_size=3, max_size=3).map(lambda x: f"({x[0]},{x[1]}),{x[2]}"),
    "view_change": st.lists(st.floats(-9, 9).map(lambda x: round(x, 1)), min_size=2, max_size=2).map(
        lambda x: f"move_right:{x[0]},rotate_up:{x[1]}"
    ),
    "text": st.sampled_from(["the red chair", "The red  chair.", "a lamp", "the red chair (left)"]),
}


def ballot(answer: str | None, weight: float, form: str) -> Ballot:
    return Ballot(answer, typed_value(answer, form)[0], weight)


def ballots(form: str):
    weights = st.floats(0.01, 1.0)
    return st.lists(
        st.builds(lambda a, w: ballot(a, w, form), st.none() | ANSWERS[form], weights), min_size=1, max_size=8
    )


@pytest.mark.parametrize("form", ANSWERS)
@given(data=st.data())
def test_any_vote_is_sane_and_its_order_does_not_matter(form, data):
    cast = data.draw(ballots(form))
    election = elect(cast, form)
    assert 0 <= election.agreement <= 1
    readable = [one for one in cast if one.value is not None]
    assert math.fsum(election.counts.values()) == pytest.approx(sum(one.weight for one in readable), abs=1e-4)
    if readable:
        assert cast[election.winner].value is not None
        assert election.agreement > 0
    assert (election.spread is not None) == (form == "number" and bool(readable))
    assert election.spread is None or (election.spread >= 0 and math.isfinite(election.spread))
    other = elect(list(reversed(cast)), form)
    assert (other.counts, other.spread) == (election.counts, election.spread)
    if readable:
        shown = [typed_value(c[e.winner].answer, form)[0] for c, e in ((cast, election), (cast[::-1], other))]
        assert elect([Ballot("", shown[0], 1.0)], form).counts == elect([Ballot("", shown[1], 1.0)], form).counts


@pytest.mark.parametrize("form", ANSWERS)
@given(data=st.data())
def test_replies_that_all_say_the_same_agree_fully(form, data):
    answer = data.draw(ANSWERS[form].filter(lambda text: typed_value(text, form)[0] is not None))
    weights = data.draw(st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
    election = elect([ballot(answer, weight, form) for weight in weights], form)
    assert election.agreement == 1.0
    assert len(election.counts) == 1
    assert election.spread in (None, 0.0)
    assert election.winner == weights.index(max(weights))


def test_minus_zero_is_zero():
    assert elect([ballot("0.000", 1.0, "number"), ballot("-0.000", 1.0, "number")], "number").counts == {"0": 2.0}


def test_a_consistent_reply_outvotes_two_guesses():
    consistent = weight_of(Consistency(triples=[], metres=0.1, degrees=3), owed=True)
    guess = weight_of(Consistency(triples=[], metres=2.0, degrees=60), owed=True)
    assert (consistent, guess) == (pytest.approx(1 / 1.2), pytest.approx(1 / 5))
    cast = [ballot("A", guess, "letter"), ballot("B", consistent, "letter"), ballot("A", guess, "letter")]
    election = elect(cast, "letter")
    assert election.winner == 1
    assert election.counts == {"B": pytest.approx(0.833333), "A": pytest.approx(0.4)}
    assert election.agreement == pytest.approx(0.8333 / 1.2333, abs=1e-3)


def test_plans_left_out_do_not_pay():
    """With three views a reply without readable plans weighs less than one that writes middling ones."""
    assert weight_of(None, owed=False) == 1.0
    assert weight_of(None, owed=True) < weight_of(Consistency(triples=[], metres=0.5, degrees=15), owed=True)


def test_numbers_take_the_weighted_median_and_its_quartiles():
    cast = [ballot(text, 1.0, "number") for text in ("1", "2", "3", "4", "1000")]
    election = elect(cast, "number")
    assert (cast[election.winner].value, election.spread) == (3.0, 2.0)
    heavy = [*cast[:4], ballot("1000", 10.0, "number")]
    assert heavy[elect(heavy, "number").winner].value == 1000.0
    assert elect([ballot("no idea", 1.0, "number")], "number").counts == {}


def test_a_box_is_the_one_most_like_the_others():
    cast = [
        ballot(text, 1.0, "box") for text in ("[0,0,100,100]", "[10,0,110,100]", "[20,0,120,100]", "[900,900,950,950]")
    ]
    assert elect(cast, "box").winner == 1


@pytest.mark.parametrize(
    ("answer", "form", "value", "problem"),
    [
        ("(c) left", "letter", "C", ""),
        ("E", "letter", None, "letter_of_no_option"),
        ("chair", "letter", None, "no_letter"),
        ("2.4 m", "number", 2.4, ""),
        ("1e999 m", "number", None, "no_number"),
        ("2 or 3", "number", None, "several_numbers"),
        ("[30,40,10,20]", "box", [10, 20, 30, 40], ""),
        ("[1,2,3]", "box", None, "bad_box"),
        ("(500,400),2.6", "camera_motion", {"x": 500, "y": 400, "depth": 2.6}, ""),
        ("500", "camera_motion", None, "not_three_numbers"),
        (
            "move_left:1.5,rotate_down:3",
            "view_change",
            {"move_right": -1.5, "move_up": 0, "move_forward": 0, "rotate_up": -3, "rotate_right": 0},
            "",
        ),
        ("left a bit", "view_change", None, "bad_view_change"),
        ("a chair", "text", "a chair", ""),
        ("", "text", None, "no_answer"),
        (None, "number", None, "no_answer"),
    ],
)
def test_answers_become_values_of_their_form(answer, form, value, problem):
    assert typed_value(answer, form, options=4 if form == "letter" else 0) == (value, problem)
