"""Which way the camera went and turned: signs by hand, by symmetry, in every form, by eye; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hatch_ray.data.pairs import Refused
from hatch_ray.data.rooms import camera_pose
from hatch_ray.data.scenes.forms import read_scene
from hatch_ray.systems.viewpoint.motion import clear_free, clear_orbit, orbit_motion
from hatch_ray.systems.viewpoint.questions import TYPES, side
from hatch_ray.systems.viewpoint.surroundings import estimated_centre, estimated_up, surroundings
from tests.support.castle import castle_as_recorded
from tests.support.scene_forms import WRITERS, names_of, synthetic

UP, ORIGIN = np.array([0.0, 0.0, 1.0]), np.zeros(3)
LETTERED = ("ego_translation", "object_translation", "ego_rotation")


def camera(
    azimuth: float, radius: float = 2.0, height: float = 0.8, aside: float = 0.0, roll: float = 0.0
) -> np.ndarray:
    """At an angle counter-clockwise from above, at a level distance, looking `aside` degrees right of the centre."""
    place = np.array([radius * np.cos(np.radians(azimuth)), radius * np.sin(np.radians(azimuth)), height])
    heading = np.degrees(np.arctan2(-place[0], -place[1]))
    return camera_pose(place, heading + aside, -np.degrees(np.arctan2(height, radius)), roll)


def answers(first: np.ndarray, second: np.ndarray, centre: np.ndarray = ORIGIN, up: np.ndarray = UP) -> list[str]:
    found = clear_orbit(first, second, centre, up)
    return [side(name, found) for name in LETTERED]


def test_the_pair_that_was_computed_by_hand() -> None:
    there = orbit_motion(camera(0), camera(54), ORIGIN, UP)
    assert there.dphi_deg == pytest.approx(54) and there.yaw_deg == pytest.approx(-54)
    assert there.lateral == pytest.approx(0.751, abs=5e-4)
    assert answers(camera(0), camera(54)) == ["right", "left", "left"]
    assert answers(camera(54), camera(0)) == ["left", "right", "right"]


PAIR = st.tuples(
    st.floats(-180, 180), st.floats(25, 95), st.floats(1, 4), st.floats(0.8, 1.25), st.floats(-8, 8), st.floats(-8, 8),
    st.floats(-20, 20), st.floats(0, 0.8),
)  # fmt: skip


@settings(deadline=None)
@given(PAIR, st.integers(0, 10**6), st.sampled_from([1, 7.3, 1e-3]))
def test_symmetries(drawn: tuple[float, ...], seed: int, scale: float) -> None:
    azimuth, dphi, radius, ratio, aside, aside_2, roll, height = drawn
    first = camera(azimuth, radius, height, aside, roll)
    second = camera(azimuth + dphi, radius * ratio, height, aside_2, -roll)
    said = answers(first, second)
    assert said == ["right", "left", "left"]
    assert answers(second, first) == ["left", "right", "right"]
    turn = Rotation.random(random_state=seed).as_matrix()
    shift = np.random.default_rng(seed).normal(size=3)

    def moved(pose: np.ndarray) -> np.ndarray:
        return np.vstack([np.c_[turn @ pose[:3, :3], scale * turn @ pose[:3, 3] + shift], [0, 0, 0, 1]])

    assert answers(moved(first), moved(second), shift, turn @ UP) == said
    exact, again = (
        orbit_motion(first, second, ORIGIN, UP),
        orbit_motion(moved(first), moved(second), shift, turn @ UP),
    )
    assert again.lateral == pytest.approx(exact.lateral) and again.yaw_deg == pytest.approx(exact.yaw_deg)
    mirror = np.diag([-1.0, 1, 1, 1])  # of the world, and of the photos
    assert answers(mirror @ first @ mirror, mirror @ second @ mirror) == ["left", "right", "right"]


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (camera(19), "angle_out_of_range"),
        (camera(101), "angle_out_of_range"),
        (camera(-101), "angle_out_of_range"),
        (camera(54, roll=40), "rolled"),
        (camera(54, roll=179), "rolled"),
        (camera(54, height=2.0), "other_height"),
        (camera(54, radius=0.3, height=0.9), "too_steep"),
        (camera(25, aside=20), "hardly_turned"),
        (camera(25, aside=50), "not_an_orbit"),
    ],
)
def test_what_gives_no_question(second: np.ndarray, reason: str) -> None:
    for pair in ((camera(0), second), (second, camera(0))):
        with pytest.raises(Refused, match=f"^{reason}$"):
            clear_orbit(*pair, ORIGIN, UP)


def test_a_camera_straight_above_the_centre_or_looking_down_has_no_side() -> None:
    above = camera(0, radius=0.0)
    with pytest.raises(Refused, match="camera_at_the_centre"):
        orbit_motion(above, camera(54), ORIGIN, UP)
    down = camera_pose(np.array([2.0, 0, 1]), 0, -90, 0)
    with pytest.raises(Refused, match="no_heading"):
        orbit_motion(camera(54), down, ORIGIN, UP)


@pytest.mark.parametrize(("to_right", "turn"), [(0.6, 25), (0.6, -25), (-0.6, 25), (-0.6, -25)])
def test_free_pairs_tell_two_bits(to_right: float, turn: float) -> None:
    first = camera_pose(np.array([0, 0, 1.5]), 0, -5, 3)
    second = camera_pose(np.array([to_right, 0.1, 1.5]), turn, 2, -2)
    there, back = clear_free(first, second, UP, (2, 3)), clear_free(second, first, UP, (3, 2))
    assert (there.lateral > 0, there.yaw_deg > 0) == (to_right > 0, turn > 0)
    assert (back.lateral > 0, back.yaw_deg > 0) == (to_right < 0, turn < 0)
    assert there.lateral == pytest.approx(to_right / 2) and there.dphi_deg is None


def test_a_way_that_is_to_the_right_by_one_photo_alone_is_unclear() -> None:
    first, second = camera_pose(np.zeros(3), 0, 0, 0), camera_pose(np.array([0.4, 1.0, 0]), 60, 0, 0)
    with pytest.raises(Refused, match="side_unclear"):
        clear_free(first, second, UP, (1, 1))


# --- what is not given ------------------------------------------------------------------------------------------


def arc(degrees: float = 150, heights: tuple[float, float] = (0.7, 0.9)) -> np.ndarray:
    return np.stack(
        [
            camera(a, height=heights[i % 2], aside=(-1) ** i * 3, roll=4 - i)
            for i, a in enumerate(np.linspace(0, degrees, 9))
        ]
    )


def test_centre_and_up_are_found_whatever_the_world_is() -> None:
    turn = Rotation.random(random_state=3).as_matrix()
    poses = arc()
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = turn, [3, -2, 5]
    found = surroundings(world @ poses)
    assert np.linalg.norm(found.centre - [3, -2, 5]) < 0.2
    assert np.degrees(np.arccos(found.up @ turn @ UP)) < 3
    given = surroundings(poses, centre=np.ones(3), up=np.array([0, 0, 2.0]))
    np.testing.assert_allclose(given.centre, 1)
    np.testing.assert_allclose(given.up, UP)


def test_cameras_in_a_line_take_up_from_their_photos() -> None:
    poses = np.stack([camera_pose(np.array([x, -2.0, 0.5]), -20 * x, -10, 0) for x in np.linspace(-1, 1, 6)])
    assert np.degrees(np.arccos(estimated_up(poses) @ UP)) < 12


def lying(pose: np.ndarray) -> np.ndarray:
    """Turned on its side, as a portrait photo that nobody turned."""
    turned = pose.copy()
    turned[:3, 0], turned[:3, 1] = pose[:3, 1], -pose[:3, 0]
    return turned


@pytest.mark.parametrize(
    ("poses", "find", "reason"),
    [
        (np.stack([camera_pose(np.array([x, 0, 0.0]), 0, 0, 0) for x in range(5)]), estimated_centre, "centre_unclear"),
        (np.stack([camera(a, aside=180) for a in range(0, 150, 20)]), estimated_centre, "centre_unclear"),
        (np.stack([lying(camera(a)) for a in range(0, 90, 10)]), estimated_up, "up_unclear"),
        (np.stack([camera(0), lying(lying(camera(10)))]), estimated_up, "up_unclear"),
    ],
)  # fmt: skip
def test_unclear_surroundings_are_refused(
    poses: np.ndarray, find: Callable[[np.ndarray], np.ndarray], reason: str
) -> None:
    with pytest.raises(Refused, match=reason):
        find(poses)


@pytest.mark.parametrize("form", ["colmap", "co3d", "transforms", "transforms, DL3DV", "recorded"])
def test_the_same_pair_has_the_same_answers_in_every_form(form: str, tmp_path: Path) -> None:
    base = synthetic(square=True, views=5)
    turn = Rotation.random(random_state=8).as_matrix()
    poses = np.stack([camera(20 * i, radius=2.5 + 0.1 * (i % 2), height=0.6) for i in range(5)])
    poses[:, :3] = turn @ poses[:, :3]
    stored = replace(base, poses=poses, seen=np.ones_like(base.seen))
    assert len(names_of(stored)) == 5
    scene = read_scene(WRITERS[form](stored, tmp_path / "scene"))
    around = surroundings(scene.poses, scene.landmarks)
    for first, second in ((0, 2), (1, 4), (0, 4)):
        assert answers(scene.poses[first], scene.poses[second], around.centre, around.up) == ["right", "left", "left"]
        assert answers(scene.poses[second], scene.poses[first], around.centre, around.up) == ["left", "right", "right"]


@pytest.mark.parametrize(
    ("first", "second", "went"),
    [(1, 24, "left"), (30, 8, "right"), (5, 40, "left"), (38, 14, "right"), (10, 36, "left")],
)
def test_castle_by_eye(repository: Path, tmp_path: Path, first: int, second: int, went: str) -> None:
    """The wall with the door is on the castle's left: who sees more of it has gone to the left, and turned right."""
    castle = repository.parent / "shared" / "orbit" / "castle"
    if not (castle / "README.md").is_file():
        pytest.skip(f"no posed views of one object at {castle}")
    scene = read_scene(castle_as_recorded(castle, tmp_path / "castle"))
    around = surroundings(scene.poses)
    other = {"left": "right", "right": "left"}[went]
    assert answers(scene.poses[first - 1], scene.poses[second - 1], around.centre, around.up) == [went, other, other]


def test_every_type_has_its_sign_and_the_last_option_is_never_right() -> None:
    there = orbit_motion(camera(0), camera(54), ORIGIN, UP)
    assert {name: TYPES[name].signed(there) > 0 for name in TYPES} == {
        "ego_translation": True, "object_translation": False, "ego_rotation": False, "rotation_degrees": False,
    }  # fmt: skip
