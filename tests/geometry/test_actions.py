"""Teacher actions and forward kinematics (papers: appendix B.3, C.2)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import RigidTransform, Rotation

from hatch_ray.geometry.actions import ATOMS, NEAR_M, compose, decompose, motion, plan_between
from hatch_ray.geometry.se3 import as_transform, pitch_roll, pose_error, relative, rotation_angle
from hatch_ray.sample import ActionFrame

UP = np.array([0.0, 0.0, 1.0])
LEVEL = Rotation.from_matrix([[1, 0, 0], [0, 0, 1], [0, -1, 0]])


@st.composite
def cameras(draw: st.DrawFn, roll: float = 20.0) -> RigidTransform:
    """A camera in a z-up world that does not look straight up or down."""
    yaw = draw(st.floats(-180, 180))
    pitch = draw(st.floats(-75, 75))
    tilt = draw(st.floats(-roll, roll))
    place = [draw(st.floats(-3, 3)) for _ in range(3)]
    return RigidTransform.from_components(place, LEVEL * Rotation.from_euler("YXZ", [yaw, pitch, tilt], degrees=True))


def moving(atoms):
    return [atom for atom in atoms if atom[1] > 0]


@given(cameras(), cameras(), st.booleans())
def test_composing_the_teacher_list_reaches_the_place_exactly(first, second, gravity):
    step = relative(first, second)
    atoms, frame = decompose(first, second, UP if gravity else None)
    d_t, _ = pose_error(compose(moving(atoms), frame), step)
    assert d_t < 1e-9 or d_t <= NEAR_M


@given(cameras(), cameras())
def test_rotation_is_lost_by_the_roll_difference_alone(first, second):
    atoms, frame = decompose(first, second, UP)
    _, d_r = pose_error(compose(moving(atoms), frame), relative(first, second))
    rolls = [pitch_roll(camera.rotation, UP)[1] for camera in (first, second)]
    assert d_r == pytest.approx(abs(rolls[0] - rolls[1]), abs=1e-4)


@given(cameras(roll=0.0), cameras(roll=0.0))
def test_rounding_costs_little(first, second):
    atoms, frame, residual = plan_between(first, second, UP)
    d_t, d_r = pose_error(compose(atoms, frame), relative(first, second))
    distance = np.linalg.norm(relative(first, second).translation)
    assert residual < 1e-4
    # Half a degree of aim in yaw and in pitch over the whole way, 5 cm of length along each moved axis; a move of
    # under 5 cm is left out, and then its two turns of aim with it.
    assert d_t <= 0.08 + NEAR_M + np.radians(1.0) * distance
    assert d_r <= 2.5


@given(cameras())
def test_a_view_and_itself_need_no_action(camera):
    atoms, _, residual = plan_between(camera, camera, UP)
    assert atoms == () and residual == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("frame", [None, ActionFrame(0, 0)])
@pytest.mark.parametrize(
    ("turn", "x", "y"),
    [("turn_right_deg", 1, 0), ("turn_left_deg", -1, 0), ("turn_up_deg", 0, -1), ("turn_down_deg", 0, 1)],
)
def test_turn_then_forward_moves_to_that_side(frame, turn, x, y):
    end = compose([(turn, 90), ("move_forward_m", 2)], frame)
    assert end.translation == pytest.approx([2 * x, 2 * y, 0], abs=1e-9)


def test_in_a_gravity_frame_up_is_world_up():
    end = compose([("move_up_m", 1)], ActionFrame(pitch_deg=-90 + 1e-6, roll_deg=0))
    assert end.translation == pytest.approx([0, 0, -1], abs=1e-6)


def test_a_steep_target_is_reached_by_moving_up():
    first = RigidTransform.from_components([0, 0, 0], LEVEL)
    second = RigidTransform.from_components([0.1, 0.1, 2.0], LEVEL)
    atoms, frame = decompose(first, second, UP)
    assert "move_up_m" in dict(moving(atoms))
    assert pose_error(compose(moving(atoms), frame), relative(first, second))[0] < 1e-9


def test_a_camera_that_looks_straight_down_has_no_frame():
    down = RigidTransform.from_components([0, 0, 0], Rotation.from_matrix(np.diag([1.0, -1.0, -1.0])))
    with pytest.raises(ValueError, match="straight up or down"):
        pitch_roll(down.rotation, UP)
    assert decompose(down, RigidTransform.identity(), UP)[1] is None


@pytest.mark.parametrize(
    ("atom", "words"),
    [
        (("move_backward_m", 1), "unknown action"),
        (("move_forward_m", -1), "must lie in 0 to 20"),
        (("turn_left_deg", 361), "must lie in 0 to 360"),
        (("turn_left_deg", float("nan")), "must lie in"),
    ],
)
def test_invalid_atoms_are_refused(atom, words):
    with pytest.raises(ValueError, match=words):
        compose([atom], None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m[:3], "4x4"),
        (lambda m: m * np.nan, "NaN"),
        (lambda m: m * 2, "not a rotation"),
        (lambda m: m @ np.diag([1, 1, -1, 1]), "not a rotation"),
        (lambda m: np.vstack([m[:3], [[0, 0, 1, 1]]]), "last row"),
    ],
)
def test_broken_poses_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        as_transform(change(np.eye(4)))


def turned(yaw=0.0, pitch=0.0, roll=0.0):
    return Rotation.from_euler("YXZ", [yaw, pitch, roll], degrees=True)


def by_scipy(atoms, frame):
    """The same kinematics, atom by atom, with scipy's rotations."""
    heading, pitch, position, body = 0.0, frame.pitch_deg if frame else 0.0, np.zeros(3), Rotation.identity()
    axes = {"move_forward_m": [0, 0, 1], "move_up_m": [0, -1, 0], "move_down_m": [0, 1, 0]}
    for name, value in atoms:
        yaw = {"turn_right_deg": value, "turn_left_deg": -value}.get(name, 0.0)
        tilt = {"turn_up_deg": value, "turn_down_deg": -value}.get(name, 0.0)
        heading, pitch, body = heading + yaw, pitch + tilt, body * turned(yaw, tilt)
        if name in axes:
            facing = body if frame is None else turned(heading, pitch) if name == "move_forward_m" else turned()
            position = position + facing.apply(value * np.array(axes[name]))
    if frame is None:
        return RigidTransform.from_components(position, body)
    start = turned(0.0, frame.pitch_deg, frame.roll_deg)
    return RigidTransform.from_components(
        start.inv().apply(position), start.inv() * turned(heading, pitch, frame.roll_deg)
    )


steps = st.lists(st.tuples(st.sampled_from(ATOMS), st.floats(0, 20)), max_size=12)
frames = st.one_of(st.none(), st.builds(ActionFrame, st.floats(-80, 80), st.floats(-30, 30)))


@given(steps, frames)
def test_kinematics_equal_scipys(atoms, frame):
    d_t, d_r = pose_error(compose(atoms, frame), by_scipy(atoms, frame))
    assert d_t < 1e-9
    assert d_r < 1e-4  # the angle of scipy's quaternions is no finer near nought
    rotation, place = motion(atoms, frame)
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.allclose(place, compose(atoms, frame).translation)


@given(steps, steps, frames)
def test_angle_of_matrices_equals_scipys(first, second, frame):
    (a, _), (b, _) = motion(first, frame), motion(second, frame)
    _, wanted = pose_error(compose(first, frame), compose(second, frame))
    assert rotation_angle(a, b) == pytest.approx(wanted, abs=1e-4)
    assert rotation_angle(a, a) == 0
