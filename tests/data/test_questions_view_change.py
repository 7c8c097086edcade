"""Both conventions of view_change_infer's rotation, held against poses made from headings and pitches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hatch_ray.data.rooms import camera_pose
from hatch_ray.geometry.view_change import view_change

UP = np.array([0.0, 0.0, 1.0])
heading = st.floats(-179, 179)
pitch = st.floats(-70, 70)
roll = st.floats(-20, 20)
place = st.tuples(*[st.floats(-5, 5)] * 3)


def wrapped(degrees: float) -> float:
    return (degrees + 180) % 360 - 180


@given(place, heading, pitch, roll, place, heading, pitch, roll)
def test_gravity_is_the_difference_of_headings_and_pitches(a, h1, p1, r1, b, h2, p2, r2):
    first, second = camera_pose(np.array(a), h1, p1, r1), camera_pose(np.array(b), h2, p2, r2)
    found = view_change(first, second, UP, "gravity")
    assert found["pitch"] == pytest.approx(p2 - p1, abs=1e-6)
    assert abs(wrapped(found["yaw"] - (h2 - h1))) < 1e-6
    step = np.linalg.inv(first)[:3] @ np.append(second[:3, 3], 1)
    assert [found["right"], -found["up"], found["forward"]] == pytest.approx(list(step), abs=1e-9)


@given(place, heading, pitch, roll, place, heading, pitch, roll)
def test_camera_turns_the_first_viewing_direction_into_the_second(a, h1, p1, r1, b, h2, p2, r2):
    first, second = camera_pose(np.array(a), h1, p1, r1), camera_pose(np.array(b), h2, p2, r2)
    found = view_change(first, second, None)
    ahead = Rotation.from_euler("YX", [found["yaw"], found["pitch"]], degrees=True).apply([0, 0, 1])
    np.testing.assert_allclose(first[:3, :3] @ ahead, second[:3, 2], atol=1e-9)
    gravity = view_change(first, second, UP, "gravity")
    assert all(found[name] == gravity[name] for name in ("right", "up", "forward"))


@given(place, heading, place, heading, pitch, roll)
def test_conventions_agree_when_the_first_camera_is_level(a, h1, b, h2, p2, r2):
    first, second = camera_pose(np.array(a), h1, 0, 0), camera_pose(np.array(b), h2, p2, r2)
    camera, gravity = view_change(first, second, UP), view_change(first, second, UP, "gravity")
    assert camera["pitch"] == pytest.approx(gravity["pitch"], abs=1e-6)
    assert abs(wrapped(camera["yaw"] - gravity["yaw"])) < 1e-6


def test_conventions_differ_when_the_first_camera_looks_down():
    first, second = camera_pose(np.zeros(3), 0, -40, 0), camera_pose(np.zeros(3), 60, -40, 0)
    gravity, camera = view_change(first, second, UP, "gravity"), view_change(first, second, UP)
    assert (gravity["pitch"], gravity["yaw"]) == (pytest.approx(0, abs=1e-9), pytest.approx(60))
    assert abs(camera["pitch"]) > 10


@given(place, heading, pitch, roll, place, heading, pitch, roll, st.tuples(*[st.floats(-3, 3)] * 6))
def test_the_world_frame_does_not_matter(a, h1, p1, r1, b, h2, p2, r2, motion):
    first, second = camera_pose(np.array(a), h1, p1, r1), camera_pose(np.array(b), h2, p2, r2)
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = Rotation.from_rotvec(motion[:3]).as_matrix(), motion[3:]
    for convention in ("camera", "gravity"):
        here = view_change(first, second, UP, convention)
        there = view_change(world @ first, world @ second, world[:3, :3] @ UP, convention)
        assert all(abs(wrapped(here[name] - there[name])) < 1e-5 for name in here)


@given(place, heading, pitch, roll, place, heading, pitch, roll)
def test_gravity_flips_its_signs_when_the_views_are_swapped(a, h1, p1, r1, b, h2, p2, r2):
    first, second = camera_pose(np.array(a), h1, p1, r1), camera_pose(np.array(b), h2, p2, r2)
    there, back = view_change(first, second, UP, "gravity"), view_change(second, first, UP, "gravity")
    assert there["pitch"] == pytest.approx(-back["pitch"], abs=1e-6)
    assert abs(wrapped(there["yaw"] + back["yaw"])) < 1e-6


def test_what_cannot_be_told_is_refused():
    level, down = camera_pose(np.zeros(3), 0, 0, 0), camera_pose(np.zeros(3), 0, -90, 0)
    with pytest.raises(ValueError, match="needs the direction of world up"):
        view_change(level, level, None, "gravity")
    with pytest.raises(ValueError, match="straight up or down"):
        view_change(level, down, UP, "gravity")
    with pytest.raises(ValueError, match="not a rotation"):
        view_change(np.diag([2.0, 1, 1, 1]), level, UP)
