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
