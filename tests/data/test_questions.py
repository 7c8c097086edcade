"""Questions: every gold answer computed again another way, from the stored cameras, depth and marks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.spatial.transform import RigidTransform, Rotation

from hatch_ray.config_sections import DataConfig, RoomsConfig
from hatch_ray.data.build import build_dataset
from hatch_ray.data.images import load_depth
from hatch_ray.data.pairs import Refused, SceneViews, ViewTuple, gold_plans
from hatch_ray.data.questions import TASKS, choose_tasks
from hatch_ray.data.questions.camera import camera_motion, view_change, view_change_text
from hatch_ray.data.questions.relation import flip, relation_words
from hatch_ray.data.rooms import Room
from hatch_ray.data.scene import Frame, SceneObject
from hatch_ray.data.store import read_dataset
from hatch_ray.geometry.actions import compose, plan_between
from hatch_ray.geometry.se3 import as_transform, pose_error, relative
from hatch_ray.protocol.prompt import gold_reply, sample_prompt
from hatch_ray.protocol.response import parse_response
from hatch_ray.protocol.values import parse_view_change
from hatch_ray.rewards.terms import SCORERS
from hatch_ray.sample import Mark, Sample

SIX = [
    "view_change_infer", "camera_motion_infer", "position_matching", "depth_prediction_oc_mv",
    "distance_prediction_oo_mv", "obj_spatial_relation_oc_mv",
]  # fmt: skip
ROOMS = DataConfig(samples=90, tasks=SIX, rooms=RoomsConfig(train_scenes=10))
K = np.array([[56.0, 0, 55.5], [0, 56.0, 55.5], [0, 0, 1]])

angle = st.floats(-60, 60)
metre = st.floats(-3, 3)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Ninety questions about ten rooms, as read back from disk."""
    path = tmp_path_factory.mktemp("questions") / "rooms"
    build_dataset(ROOMS, 3, "train", path)
    return read_dataset(path)


@pytest.fixture(scope="module")
def rooms(samples: list[Sample]) -> dict[str, Room]:
    return {name: Room(int(name.split("-")[1])) for name in {sample.scene for sample in samples}}


def of_task(samples: list[Sample], name: str) -> list[Sample]:
    found = [sample for sample in samples if sample.task == name]
    assert len(found) == 15
    return found


@dataclass
class TwoCameras:
    """A scene without surfaces: enough for questions about the cameras alone."""

    id: str = "two"
    objects: tuple[SceneObject, ...] = ()
    up: np.ndarray | None = None


def two_views(pose_0: np.ndarray, pose_1: np.ndarray) -> ViewTuple:
    blank = np.zeros((112, 112), dtype=np.float32)
    frames = tuple(
        Frame(str(i), np.zeros((112, 112, 3), np.uint8), blank, K, K, pose) for i, pose in enumerate((pose_0, pose_1))
    )
    transforms = (as_transform(pose_0), as_transform(pose_1))
    return ViewTuple(TwoCameras(), (0, 1), frames, transforms, {(0, 1): 0.5}, ((), ()))  # type: ignore[arg-type]


def pose(x: float, y: float, z: float, yaw: float = 0, pitch: float = 0, roll: float = 0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("YXZ", [yaw, pitch, roll], degrees=True).as_matrix()
    matrix[:3, 3] = x, y, z
    return matrix


def opencv_project(k: np.ndarray, camera_to_world: np.ndarray, place: np.ndarray) -> tuple[float, float, float]:
    """(u, v, depth) by the 3x4 projection matrix K [R | t] of the world-to-camera transform."""
    world_to_camera = np.linalg.inv(camera_to_world)
    u, v, depth = k @ world_to_camera[:3] @ np.append(place, 1)
    return u / depth, v / depth, depth


@given(metre, metre, metre, angle, angle, angle, metre, angle, angle)
def test_view_change_is_the_relative_pose(
    x: float, y: float, z: float, yaw: float, pitch: float, roll: float, dx: float, yaw_2: float, pitch_2: float
) -> None:
    first, second = pose(x, y, z, yaw, pitch, roll), pose(x + dx, y - dx, z + 1, yaw_2, pitch_2)
    question = view_change(two_views(first, second), np.random.default_rng(0))
    motion = np.linalg.inv(first) @ second
    assert question.gold["right"] == pytest.approx(motion[0, 3], abs=1e-9)
    assert question.gold["up"] == pytest.approx(-motion[1, 3], abs=1e-9)
    assert question.gold["forward"] == pytest.approx(motion[2, 3], abs=1e-9)
    ahead = Rotation.from_euler("YX", [question.gold["yaw"], question.gold["pitch"]], degrees=True).apply([0, 0, 1])
    np.testing.assert_allclose(ahead, motion[:3, 2], atol=1e-9)
    said = parse_view_change(question.answer)
    assert said is not None
    for name, key, step in (
        ("x", "right", 0.1), ("y", "up", 0.1), ("z", "forward", 0.1), ("yaw", "yaw", 1), ("pitch", "pitch", 1),
    ):  # fmt: skip
        assert abs(said[name] - question.gold[key]) <= step / 2 + 1e-9


@given(metre, metre, metre, angle)
def test_swapping_views_flips_every_sign_when_the_second_axis_stays(
    dx: float, dy: float, dz: float, yaw: float
) -> None:
    for first, second in ((pose(0, 0, 0), pose(dx, dy, dz)), (pose(1, 2, 3), pose(1, 2, 3, yaw))):
        rng = np.random.default_rng(0)
        there = view_change(two_views(first, second), rng).gold
        back = view_change(two_views(second, first), rng).gold
        assert all(there[key] == pytest.approx(-back[key], abs=1e-9) for key in there)


def test_view_change_has_spars_spelling() -> None:
    gold = {"right": -2.61, "up": -0.1, "forward": -0.2, "pitch": 10.4, "yaw": -0.4}
    assert view_change_text(gold) == "move_left:2.6,move_down:0.1,move_backward:0.2,rotate_up:10,rotate_right:0"
    still = dict.fromkeys(gold, -0.0)
    assert view_change_text(still) == "move_right:0.0,move_up:0.0,move_forward:0.0,rotate_up:0,rotate_right:0"


@given(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5), st.floats(-1, 3), angle, angle, angle)
def test_camera_motion_is_a_projection(x: float, y: float, z: float, yaw: float, pitch: float, roll: float) -> None:
    first = pose(0.3, -0.2, 1.0, yaw, pitch, roll)
    second = pose(0, 0, 0, yaw + 20)
    second[:3, 3] = first[:3, :3] @ [x, y, z] + first[:3, 3]
    views = two_views(first, second)
    assume(abs(z) > 1e-3)
    u, v, depth = opencv_project(K, first, second[:3, 3])
    edges = [depth - 0.2, u + 0.5, 111.5 - u, v + 0.5, 111.5 - v]
    assume(min(abs(edge) for edge in edges) > 1e-6)
    inside = depth >= 0.2 and -0.5 <= u <= 111.5 and -0.5 <= v <= 111.5
    if not inside:
        with pytest.raises(Refused, match="camera_"):
            camera_motion(views, np.random.default_rng(0))
        return
    question = camera_motion(views, np.random.default_rng(0))
    found = re.fullmatch(r"\((\d+),(\d+)\),(\d+\.\d)", question.answer)
    assert found
    assert float(found[1]) == pytest.approx((u + 0.5) / 112 * 1000, abs=0.51)
    assert float(found[2]) == pytest.approx((v + 0.5) / 112 * 1000, abs=0.51)
    assert float(found[3]) == pytest.approx(depth, abs=0.051)


def mark_pixel(sample: Sample, mark: Mark) -> tuple[int, int]:
    return int(mark.xy[0] * 112 / 1000), int(mark.xy[1] * 112 / 1000)


def named_object(room: Room, text: str) -> SceneObject:
    (found,) = [thing for thing in room.objects if thing.name in text]
    return found


def instances(sample: Sample, rooms: dict[str, Room], view: int) -> np.ndarray:
    room = rooms[sample.scene]
    found = room.frame(int(sample.meta["frames"][view].split("-")[-1])).instances
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["depth_prediction_oc_mv", "distance_prediction_oo_mv"])
def test_points_lie_on_the_named_objects(samples: list[Sample], rooms: dict[str, Room], name: str) -> None:
    for sample in of_task(samples, name):
        assert [mark.color for mark in sample.marks] == ["red", "blue"]
        for mark in sample.marks:
            (thing_name,) = re.findall(
                rf"[Tt]he ([a-z]+ [a-z]+) \({mark.color} point, image {mark.view}\)", sample.question
            )
            u, v = mark_pixel(sample, mark)
            owner = instances(sample, rooms, mark.view)[v, u]
            assert rooms[sample.scene].objects[owner].name == thing_name


def test_depth_is_the_centre_in_its_own_camera(samples: list[Sample], rooms: dict[str, Room]) -> None:
    for sample in of_task(samples, "depth_prediction_oc_mv"):
        depths = []
        for mark in sample.marks:
            u, v = mark_pixel(sample, mark)
            thing = rooms[sample.scene].objects[instances(sample, rooms, mark.view)[v, u]]
            view = sample.views[mark.view]
            assert view.pose is not None
            assert view.intrinsics is not None
            assert view.depth_path is not None
            depths.append(opencv_project(view.intrinsics, view.pose, thing.center)[2])
            # The surface that the mark covers belongs to a thing of this size around that centre.
            assert abs(load_depth(view.depth_path)[v, u] - depths[-1]) <= np.linalg.norm(thing.size) / 2 + 0.05
        assert f"{depths[0]:.1f} m" in sample.question
        assert sample.answer == f"{depths[1]:.1f}"


def test_distance_is_between_centres(samples: list[Sample], rooms: dict[str, Room]) -> None:
    for sample in of_task(samples, "distance_prediction_oo_mv"):
        things = []
        for mark in sample.marks:
            u, v = mark_pixel(sample, mark)
            things.append(rooms[sample.scene].objects[instances(sample, rooms, mark.view)[v, u]])
        assert things[0].id != things[1].id
        assert float(sample.answer) == pytest.approx(np.linalg.norm(things[0].center - things[1].center), abs=0.0501)


def test_relation_by_the_compass(samples: list[Sample], rooms: dict[str, Room]) -> None:
    later = []
    for sample in of_task(samples, "obj_spatial_relation_oc_mv"):
        text, *options = re.split(r" [A-D]\. ", sample.question)
        thing = named_object(rooms[sample.scene], text)
        camera = sample.views[0].pose
        assert camera is not None
        step = thing.center - camera[:3, 3]
        offsets = {
            ("right", "left"): step @ camera[:3, 0],
            ("above", "below"): step[2],
            ("front", "behind"): step @ camera[:3, 2],
        }
        gap = max(0.1, 0.05 * float(np.linalg.norm(step)))
        words = [pair[0] if value > 0 else pair[1] for pair, value in offsets.items() if abs(value) >= gap]
        assert options["ABCD".index(sample.answer)] == ", ".join(words)
        assert len(set(options)) == len(options) == {1: 2, 2: 4, 3: 4}[len(words)]
        (mark,) = sample.marks
        assert f"(red bbox, image {mark.view})" in text
        later.append(mark.view > 0)
    # A later view where it shows a thing; walking forward, the last one may show none.
    assert np.mean(later) > 0.5


def test_matching_boxes_hold_the_same_object(samples: list[Sample], rooms: dict[str, Room]) -> None:
    for sample in of_task(samples, "position_matching"):
        thing = named_object(rooms[sample.scene], sample.question)
        said = [int(value) for value in sample.answer.strip("[]").split(",")]
        for view, box in ((0, sample.marks[0].xy), (1, said)):
            rows, columns = np.nonzero(instances(sample, rooms, view) == thing.id)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(box, np.array(edges) / 112 * 1000, atol=0.51)
            # The projected 3-D box holds the visible part: masks, poses and intrinsics agree.
            pose_, k = sample.views[view].pose, sample.views[view].intrinsics
            assert pose_ is not None
            assert k is not None
            c, s = np.cos(thing.yaw), np.sin(thing.yaw)
            corners = [
                thing.center + np.array([c * x - s * y, s * x + c * y, z])
                for x in (-thing.size[0] / 2, thing.size[0] / 2)
                for y in (-thing.size[1] / 2, thing.size[1] / 2)
                for z in (-thing.size[2] / 2, thing.size[2] / 2)
            ]
            pixels = np.array([opencv_project(k, pose_, corner)[:2] for corner in corners])
            assert columns.min() >= pixels[:, 0].min() - 2
            assert columns.max() <= pixels[:, 0].max() + 2
            assert rows.min() >= pixels[:, 1].min() - 2
            assert rows.max() <= pixels[:, 1].max() + 2


def test_every_sample_can_be_checked_again(samples: list[Sample]) -> None:
    assert {sample.task for sample in samples} == set(SIX)
    for sample in samples:
        transforms = [as_transform(view.pose) for view in sample.views if view.pose is not None]
        assert sample.plans == gold_plans(transforms, np.array(sample.meta["up"]))
        reply = parse_response(gold_reply(sample, "actions"), len(sample.views))
        assert reply.format_ok
        assert SCORERS[sample.answer_form](reply.answer or "", sample.answer)[0] == 1.0
        sample_prompt(sample, "actions", "compact-v1")
        for plan in sample.plans:
            moved = compose(plan.atoms, plan.frame)
            d_t, d_r = pose_error(moved, relative(transforms[plan.source], transforms[plan.target]))
            assert d_t < 0.2
            assert d_r < plan.residual_deg + 2.5


def test_views_follow_the_config(samples: list[Sample]) -> None:
    for sample in samples:
        assert len(sample.views) == TASKS[sample.task].views
        assert len(sample.plans) == len(sample.pairs)
        for plan in sample.plans:
            baseline, rotation = pose_error(
                *(as_transform(sample.views[view].pose) for view in (plan.source, plan.target))  # type: ignore[arg-type]
            )
            assert baseline >= 0.2 or rotation >= 10
        assert max(sample.meta["overlaps"]) <= ROOMS.max_overlap
        if len(sample.views) == 2:
            assert min(sample.meta["overlaps"]) >= ROOMS.min_overlap


@given(angle, st.floats(0.1, 3), angle)
def test_plans_need_no_gravity_for_level_cameras(yaw: float, forward: float, turn: float) -> None:
    first, second = pose(0, 0, 0, yaw), pose(0, 0, 0, yaw + turn)
    second[:3, 3] = first[:3, 2] * forward
    transforms = [as_transform(first), as_transform(second)]
    (level,), (free,) = gold_plans(transforms, np.array([0.0, -1.0, 0.0])), gold_plans(transforms, None)
    assert level.atoms == free.atoms
    assert free.frame is None
    assert level.atoms == plan_between(transforms[0], transforms[1], np.array([0.0, -1.0, 0.0]))[0]


def test_slots_below_the_gap_stay_empty() -> None:
    assert relation_words(np.array([0.05, -1.0, 2.0]), 0.1) == ("below", "front")
    assert relation_words(np.array([1.0, np.nan, -2.0]), 0.1) == ("right", "behind")
    assert flip(("right", "below", "front"), (0, 2)) == ("left", "below", "behind")


def test_views_too_alike_or_too_far_are_refused() -> None:
    room = Room(0)
    narrow = SceneViews(room, 0.0, 0.001)
    with pytest.raises(Refused, match="overlap_too_large"):
        narrow.draw(2, np.random.default_rng(0))
    with pytest.raises(Refused, match="overlap_too_small"):
        SceneViews(room, 0.999, 1.0).draw(2, np.random.default_rng(0))
    with pytest.raises(Refused, match="scene_has_too_few_views"):
        narrow.draw(9, np.random.default_rng(0))


def test_same_place_is_refused() -> None:
    room = Room(1)
    room.poses[1:] = room.poses[0]
    with pytest.raises(Refused, match="camera_hardly_moved"):
        SceneViews(room, 0.0, 1.0).draw(2, np.random.default_rng(0))


def test_unknown_tasks_and_tasks_without_objects() -> None:
    with pytest.raises(ValueError, match="unknown task 'depth'; known tasks: multi, single, camera_motion_infer"):
        choose_tasks(["depth"], has_objects=True)
    with pytest.raises(ValueError, match="position_matching needs objects"):
        choose_tasks(["position_matching"], has_objects=False)
    assert "position_matching" not in {task.name for task in choose_tasks([], has_objects=False)}


def test_pose_of_the_first_camera_does_not_matter() -> None:
    """Golds of camera questions are the same after the whole world is moved."""
    first, second = pose(0, 0, 0, 10, 5), pose(0.4, 0.1, 0.9, 30, -5, 3)
    moved = RigidTransform.from_components(
        [3, -1, 2], Rotation.from_euler("XYZ", [20, 50, -70], degrees=True)
    ).as_matrix()
    for make in (view_change, camera_motion):
        here = make(two_views(first, second), np.random.default_rng(0))
        there = make(two_views(moved @ first, moved @ second), np.random.default_rng(0))
        assert here.answer == there.answer


def test_a_task_is_one_function(tmp_path: Path) -> None:
    from hatch_ray.data.questions import Question, task

    @task("count_views_test", views=2, form="number")
    def count_views(views: ViewTuple, rng: np.random.Generator) -> Question:
        return Question("How many images?", str(len(views)), {"count": len(views)})

    try:
        data = DataConfig(tasks=["count_views_test"], samples=3, rooms=RoomsConfig(train_scenes=2))
        build_dataset(data, 0, "train", tmp_path / "d")
        assert [sample.answer for sample in read_dataset(tmp_path / "d")] == ["2", "2", "2"]
    finally:
        del TASKS["count_views_test"]
