"""Every SPAR task in both formats: golds computed again another way, marks, options, letters, single views, rewards."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hatch_ray.config_sections import DataConfig, ModelConfig, PastaConfig, RewardConfig, RoomsConfig
from hatch_ray.data.build import build_dataset
from hatch_ray.data.pairs import Refused, SceneViews
from hatch_ray.data.questions import TASKS, choose_tasks
from hatch_ray.data.questions.choices import LETTERS
from hatch_ray.data.rooms import Room
from hatch_ray.data.scene import SceneObject
from hatch_ray.data.store import read_dataset
from hatch_ray.evaluation.heldout import summarise, swap_images
from hatch_ray.geometry.boxes import box_iou
from hatch_ray.learning.pasta import collect_pairs, make_targets
from hatch_ray.learning.sft import pack_samples
from hatch_ray.model.base import load_model, load_processor
from hatch_ray.protocol.prompt import gold_reply, sample_prompt
from hatch_ray.rewards.terms import RewardTarget, score_reply, score_text
from hatch_ray.sample import Sample
from hatch_ray.systems.hatch.baselines import constant_replies, still_replies
from tests.support.hatch import encoder_of, judged, total

MARKS = {
    "view_change_infer": "",
    "camera_motion_infer": "",
    "position_matching": "red box",
    "depth_prediction_oc": "red point, blue point",
    "depth_prediction_oo": "red point, blue point, green point",
    "distance_prediction_oc": "red point",
    "distance_prediction_oo": "red point, blue point",
    "distance_infer_center_oc": "",
    "distance_infer_center_oo": "red point, green point, blue point",
    "obj_spatial_relation_oc": "red box",
    "obj_spatial_relation_oo": "red box, blue box",
    "spatial_volume_infer": "red box",
    "spatial_imagination_oc": "green box, blue box, red box",
    "spatial_imagination_oo": "green box, blue box, red box, yellow box",
}
"""SPAR's marks in the order of its image indices, the same for one view and for several."""
SINGLE = {
    "obj_spatial_relation_oo", "depth_prediction_oc", "depth_prediction_oo", "distance_prediction_oc",
    "distance_prediction_oo", "distance_infer_center_oc", "distance_infer_center_oo", "spatial_volume_infer",
    "spatial_imagination_oc", "spatial_imagination_oo",
}  # fmt: skip
TWO_VIEWS = {"view_change_infer", "camera_motion_infer", "position_matching"}
THREE_VIEWS = {
    "depth_prediction_oc_mv", "depth_prediction_oo_mv", "distance_prediction_oc_mv", "distance_prediction_oo_mv",
    "distance_infer_center_oc_mv", "distance_infer_center_oo_mv", "obj_spatial_relation_oc_mv",
    "obj_spatial_relation_oo_mv", "spatial_imagination_oc_mv", "spatial_imagination_oo_mv",
    "spatial_imagination_map_mv",
}  # fmt: skip
EACH = 10
ROOMS = DataConfig(
    tasks=list(SINGLE | TWO_VIEWS | THREE_VIEWS), samples=24 * EACH, formats=["fill", "select"],
    rooms=RoomsConfig(train_scenes=30),
)  # fmt: skip
MAP = "spatial_imagination_map_mv"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    path = tmp_path_factory.mktemp("questions") / "rooms"
    build_dataset(ROOMS.model_copy(update={"tasks": sorted(ROOMS.tasks)}), 7, "train", path)
    return read_dataset(path)


@pytest.fixture(scope="module")
def rooms(samples: list[Sample]) -> dict[str, Room]:
    return {name: Room(int(name.split("-")[1])) for name in {sample.scene for sample in samples}}


def of_task(samples: list[Sample], *names: str) -> list[Sample]:
    found = [sample for sample in samples if sample.task in names]
    assert len(found) == EACH * len(names)
    return found


def options(sample: Sample) -> list[str]:
    return re.split(r" [A-D]\. ", sample.question)[1:] if sample.answer_form == "letter" else []


def said(sample: Sample) -> str:
    """The answer, or what stands behind its letter."""
    return options(sample)[LETTERS.index(sample.answer)] if sample.answer_form == "letter" else sample.answer


def named(sample: Sample, rooms: dict[str, Room]) -> dict[str, SceneObject]:
    """Colour of the mark -> the object that the question names beside it; the mark lies on that object."""
    room = rooms[sample.scene]
    found = {}
    for mark in sample.marks:
        image = f", image {mark.view}" if len(sample.views) > 1 else ""
        kind = "point" if len(mark.xy) == 2 else "bbox"
        (name,) = re.findall(rf"([a-z]+ [a-z]+) \({mark.color} {kind}{image}\)", sample.question)
        (thing,) = [item for item in room.objects if item.name == name]
        mask = frame_mask(sample, room, mark.view) == thing.id
        if kind == "point":
            assert mask[int(mark.xy[1] * 0.112), int(mark.xy[0] * 0.112)]
        else:
            assert mark.xy == pytest.approx(mask_box(mask), abs=0.51)
        found[mark.color] = thing
    return found


def frame_mask(sample: Sample, room: Room, view: int) -> np.ndarray:
    owners = room.frame(int(sample.meta["frames"][view].split("-")[-1])).instances
    assert owners is not None
    return owners


def mask_box(mask: np.ndarray) -> list[float]:
    rows, columns = np.nonzero(mask)
    return [edge / 112 * 1000 for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def in_camera(sample: Sample, view: int, place: np.ndarray) -> np.ndarray:
    """(right, down, forward) by the inverse of the 4x4 pose."""
    pose = sample.views[view].pose
    assert pose is not None
    return np.linalg.solve(pose, np.append(place, 1))[:3]


def own_depth(sample: Sample, color: str, things: dict[str, SceneObject]) -> float:
    (view,) = [mark.view for mark in sample.marks if mark.color == color]
    return float(in_camera(sample, view, things[color].center)[2])


def observer(sample: Sample) -> np.ndarray:
    pose = sample.views[0].pose
    assert pose is not None
    return pose[:3, 3]


def gap(a: SceneObject | np.ndarray, b: SceneObject | np.ndarray) -> float:
    a, b = (item.center if isinstance(item, SceneObject) else item for item in (a, b))
    return float(np.sqrt(((a - b) ** 2).sum()))


def words(parts: list[tuple[float, str, str]], distance: float) -> str:
    least = max(0.1, 0.05 * distance)
    return ", ".join(plus if value > 0 else minus for value, plus, minus in parts if abs(value) >= least)


def turned(step: np.ndarray, ahead: np.ndarray) -> tuple[float, float]:
    """(right, forward) on the floor for one who looks along `ahead`: complex numbers, forward is +i."""
    found = complex(step[0], step[1]) / complex(ahead[0], ahead[1]) * abs(complex(ahead[0], ahead[1])) * 1j
    return found.real, found.imag


def test_the_registry_is_spars_table() -> None:
    assert set(TASKS) == SINGLE | TWO_VIEWS | THREE_VIEWS
    for name, task in TASKS.items():
        assert task.views == (1 if name in SINGLE else 2 if name in TWO_VIEWS else 3)
        relation = name.startswith(("obj_spatial", "spatial_imagination"))
        expected = ("sentence",) if name == MAP else ("select",) if relation else ("fill", "select")
        assert task.formats == (("fill",) if name == "view_change_infer" else expected)
    assert {task.name for task in choose_tasks([], True)} == (TWO_VIEWS | THREE_VIEWS) - {MAP}
    assert {task.name for task in choose_tasks(["single"], True)} == SINGLE
    assert len(choose_tasks(["single", "multi", MAP, "depth_prediction_oc"], True)) == 24
    assert not any(task.needs_objects for task in choose_tasks(["single", "multi"], False))


def test_marks_are_spars(samples: list[Sample]) -> None:
    for sample in samples:
        drawn = ", ".join(f"{mark.color} {'point' if len(mark.xy) == 2 else 'box'}" for mark in sample.marks)
        if sample.task == MAP:
            assert [mark.label for mark in sample.marks] == [f"object{k}" for k in range(len(sample.marks))]
            assert 2 <= len(sample.marks) <= 3
            continue
        assert drawn == MARKS[sample.task.removesuffix("_mv")]
        assert not any(mark.label for mark in sample.marks)
        if sample.task == "position_matching":
            assert sample.marks[0].view == 0


def test_marks_of_one_view_can_be_told_apart(samples: list[Sample]) -> None:
    for sample in samples:
        for i, a in enumerate(sample.marks):
            for b in sample.marks[:i]:
                if a.view != b.view:
                    continue
                if len(a.xy) == 2:
                    assert np.hypot(a.xy[0] - b.xy[0], a.xy[1] - b.xy[1]) >= 62.5
                else:
                    across = max(a.xy[0] - b.xy[2], b.xy[0] - a.xy[2])
                    assert max(across, a.xy[1] - b.xy[3], b.xy[1] - a.xy[3]) >= 0


def test_views_are_compared(samples: list[Sample]) -> None:
    """Where a question marks several things in several views, the marks stand in more than one of them."""
    several = [sample for sample in samples if len(sample.views) > 1 and len(sample.marks) > 1]
    assert np.mean([len({mark.view for mark in sample.marks}) > 1 for sample in several]) > 0.9


def test_depths(samples: list[Sample], rooms: dict[str, Room]) -> None:
    for sample in of_task(samples, "depth_prediction_oc", "depth_prediction_oc_mv"):
        things = named(sample, rooms)
        assert f"{own_depth(sample, 'red', things):.1f} m" in sample.question
        assert said(sample) == f"{own_depth(sample, 'blue', things):.1f}"
    for sample in of_task(samples, "depth_prediction_oo", "depth_prediction_oo_mv"):
        things = named(sample, rooms)
        assert f"{own_depth(sample, 'red', things):.1f} m" in sample.question
        difference = abs(own_depth(sample, "green", things) - own_depth(sample, "blue", things))
        assert said(sample) == f"{difference:.1f}"
        assert difference >= 0.3


def test_distances(samples: list[Sample], rooms: dict[str, Room]) -> None:
    for sample in of_task(samples, "distance_prediction_oc", "distance_prediction_oc_mv"):
        assert float(said(sample)) == pytest.approx(gap(named(sample, rooms)["red"], observer(sample)), abs=0.0501)
    for sample in of_task(samples, "distance_prediction_oo", "distance_prediction_oo_mv"):
        things = named(sample, rooms)
        assert float(said(sample)) == pytest.approx(gap(things["red"], things["blue"]), abs=0.0501)
        assert things["red"].id != things["blue"].id


def test_volumes(samples: list[Sample], rooms: dict[str, Room]) -> None:
    for sample in of_task(samples, "spatial_volume_infer"):
        wide, deep, high = named(sample, rooms)["red"].size
        assert float(said(sample)) == pytest.approx(wide * deep * high, abs=0.00501)
        assert wide * deep * high >= 0.05


def test_nearer_of_two(samples: list[Sample], rooms: dict[str, Room]) -> None:
    for sample in of_task(samples, "distance_infer_center_oo", "distance_infer_center_oo_mv"):
        things = named(sample, rooms)
        green, blue = gap(things["green"], things["red"]), gap(things["blue"], things["red"])
        farther = "farther from" in sample.question
        assert farther != ("closer to" in sample.question)
        if abs(green - blue) < 0.05:
            assert said(sample) == "equal"
            continue
        assert abs(green - blue) >= max(0.2, 0.1 * max(green, blue))
        color = "green" if (green > blue) == farther else "blue"
        assert said(sample) == f"{color} ({things[color].name})"


def test_nearest_of_several(samples: list[Sample], rooms: dict[str, Room]) -> None:
    for sample in of_task(samples, "distance_infer_center_oc", "distance_infer_center_oc_mv"):
        text = re.split(r" A\. ", sample.question)[0]
        room = rooms[sample.scene]
        listed = [thing for thing in room.objects if f"the {thing.name}" in text]
        assert 2 <= len(listed) <= 4
        distances = sorted((gap(thing, observer(sample)), thing.name) for thing in listed)
        if "farthest" in text:
            distances.reverse()
        assert abs(distances[0][0] - distances[1][0]) >= max(0.2, 0.1 * max(distances[0][0], distances[1][0]))
        name = distances[0][1]
        if len(sample.views) == 1:
            assert said(sample) == name
            continue
        found = re.fullmatch(rf"the (first|second|third) image, \[([\d,]+)\] \({name}\)", said(sample))
        assert found
        assert f"the {name} ({found[1]} image)" in text
        view = ("first", "second", "third").index(found[1])
        (thing,) = [thing for thing in listed if thing.name == name]
        box = [int(value) for value in found[2].split(",")]
        assert box == pytest.approx(mask_box(frame_mask(sample, room, view) == thing.id), abs=0.51)


def test_relations(samples: list[Sample], rooms: dict[str, Room]) -> None:
    for sample in of_task(samples, "obj_spatial_relation_oo", "obj_spatial_relation_oo_mv"):
        things = named(sample, rooms)
        red, blue = things["red"].center, things["blue"].center
        far = {color: gap(things[color], observer(sample)) for color in things}
        right = in_camera(sample, 0, blue)[0] - in_camera(sample, 0, red)[0]
        parts = [
            (right, "right", "left"),
            (blue[2] - red[2], "above", "below"),
            (far["blue"] - far["red"], "farther", "closer"),
        ]
        assert said(sample) == words(parts, max(far.values()))


def test_imagination(samples: list[Sample], rooms: dict[str, Room]) -> None:
    for sample in of_task(samples, "spatial_imagination_oc", "spatial_imagination_oc_mv"):
        things = named(sample, rooms)
        ahead = things["blue"].center - things["green"].center
        assert np.hypot(*ahead[:2]) >= 0.3
        step = things["red"].center - things["green"].center
        right, forward = turned(step, ahead)
        parts = [(right, "right", "left"), (step[2], "above", "below"), (forward, "front", "behind")]
        assert said(sample) == words(parts, gap(things["red"], things["green"]))
    for sample in of_task(samples, "spatial_imagination_oo", "spatial_imagination_oo_mv"):
        things = named(sample, rooms)
        assert len({thing.id for thing in things.values()}) == 4
        ahead = things["blue"].center - things["green"].center
        step = things["red"].center - things["yellow"].center
        far = [gap(things[color], things["green"]) for color in ("yellow", "red")]
        right, _ = turned(step, ahead)
        parts = [(right, "right", "left"), (step[2], "above", "below"), (far[1] - far[0], "farther", "closer")]
        assert said(sample) == words(parts, max(far))


def test_maps(samples: list[Sample], rooms: dict[str, Room]) -> None:
    for sample in of_task(samples, MAP):
        pose = sample.views[0].pose
        assert pose is not None
        places = re.findall(r"object(\d): \[(-?[\d.]+),(-?[\d.]+)\]", sample.answer)
        assert "-0.0" not in sample.answer
        assert score_text(re.sub(r"[\d.]+(?=\])", "99", sample.answer), sample.answer) == (0, "wrong_text")
        assert len(places) == len(sample.marks)
        for index, (number, x, y) in enumerate(places):
            (name,) = re.findall(rf"object{number} \(([a-z ]+), image {sample.marks[index].view}\)", sample.question)
            (thing,) = [item for item in rooms[sample.scene].objects if item.name == name]
            right, forward = turned(thing.center - pose[:3, 3], pose[:3, 2])
            assert (float(x), float(y)) == pytest.approx((right, forward), abs=0.0501)


def test_matching_and_camera_options(samples: list[Sample]) -> None:
    for sample in of_task(samples, "position_matching"):
        assert said(sample) == "[" + ",".join(map(str, sample.meta["gold"]["box"])) + "]"
        boxes = [[int(value) for value in option.strip("[]").split(",")] for option in options(sample)]
        for i, box in enumerate(boxes):
            assert set(box) <= set(range(1001))
            assert all(box_iou(box, other) < 0.3 for other in boxes[:i])
    for sample in of_task(samples, "camera_motion_infer"):
        gold = sample.meta["gold"]
        assert said(sample) == f"({round(gold['x'])},{round(gold['y'])}),{gold['depth']:.1f}"
        assert all(re.fullmatch(r"\(\d+,\d+\),\d+\.\d", option) for option in options(sample))


def test_options_differ_and_hold_the_answer_once(samples: list[Sample]) -> None:
    for sample in samples:
        if sample.answer_form != "letter":
            assert " A. " not in sample.question
            continue
        assert 2 <= len(options(sample)) <= 4
        assert len(set(options(sample))) == len(options(sample))
        assert "Answer" not in sample.question
        if "answer" in sample.meta["gold"]:
            assert options(sample).count(sample.meta["gold"]["answer"]) == 1


def test_formats_take_turns(samples: list[Sample]) -> None:
    forms = Counter((sample.task, sample.answer_form == "letter") for sample in samples)
    for name, task in TASKS.items():
        selects = {("fill", "select"): EACH // 2, ("select",): EACH}.get(task.formats, 0)
        assert forms[name, True] == selects
        assert forms[name, False] == EACH - selects


def test_single_views_are_asked_for_the_answer_alone(samples: list[Sample]) -> None:
    for sample in samples:
        assert len(sample.views) == TASKS[sample.task].views
        assert len(sample.plans) == {1: 0, 2: 1, 3: 3}[len(sample.views)]
        text = sample_prompt(sample, "actions", "full-v1")[0]["content"][-1]["text"]
        assert ("<action>" in text) == (len(sample.views) > 1)
        reply = gold_reply(sample, "actions")
        score = score_reply(reply, RewardTarget.from_sample(sample), RewardConfig())
        assert (score.terms["answer"], score.terms["format"], score.reasons) == (1, 1, ())
        assert score.terms["action"] == (None if sample.task in SINGLE else pytest.approx(1))
        assert total(score) == pytest.approx(2 if sample.task in SINGLE else 3)


def test_nothing_earns_nothing(samples: list[Sample]) -> None:
    for sample in samples:
        target = RewardTarget.from_sample(sample, "direct")
        for empty in ("", "<answer></answer>", "<answer> </answer>"):
            score = score_reply(empty, target, RewardConfig())
            assert score.terms["answer"] == 0
            assert any(reason.startswith("answer:") for reason in score.reasons)
        if sample.task == "view_change_infer":
            zeros = re.sub(r":[\d.]+", ":0", sample.answer)
            score = score_reply(f"<answer>{zeros}</answer>", target, RewardConfig())
            assert (score.terms["answer"], score.reasons) == (0, ("answer:all_zero",))


def test_baselines_and_control_take_every_task(samples: list[Sample]) -> None:
    reward = RewardConfig()
    chosen = [sample for sample in samples if sample.task != MAP][::2]
    constant = judged(chosen, constant_replies(chosen, reward), reward)
    still = judged(chosen, still_replies(chosen), reward)
    assert all(row["terms"]["format"] == 1 for row in [*constant, *still])
    found = summarise(constant, 50, 0)
    assert set(found["tasks"]) == set(TASKS) - {MAP}
    assert found["tasks"]["spatial_volume_infer"]["action"] is None
    assert found["overall"]["action"]["n"] == sum(len(sample.views) > 1 for sample in chosen)
    single = [sample for sample in chosen if len(sample.views) == 1]
    assert all(row["terms"]["action"] is None for row in judged(single, constant_replies(single, reward), reward))
    assert all(len(a.views) == len(b.views) for a, b in zip(chosen, swap_images(chosen, 0), strict=True))


def test_training_batches_mix_one_view_and_several(samples: list[Sample], tiny_model: Path) -> None:
    """Cold start asks single views for the answer alone, beside others with actions; PaStA takes no pair of them."""
    chosen = [of_task(samples, name)[0] for name in ("spatial_volume_infer", "view_change_infer", MAP)]
    processor = load_processor(tiny_model)
    encoder = encoder_of(processor, "actions", ModelConfig(template="compact-v1", max_length=512))
    batch = pack_samples(load_model(tiny_model), encoder, chosen)
    for number, sample in enumerate(chosen):
        learned = processor.tokenizer.decode(batch.target[batch.reply == number])
        assert learned == gold_reply(sample, "actions") + "<|im_end|>"
    single = [sample for sample in samples if sample.task in SINGLE]
    assert len(collect_pairs(samples)) == len(collect_pairs([item for item in samples if item.task not in SINGLE]))
    with pytest.raises(ValueError, match="none of 0 view pairs"):
        make_targets(single, PastaConfig())


def test_the_same_seed_gives_the_same_questions(tmp_path: Path) -> None:
    data = ROOMS.model_copy(update={"tasks": sorted(ROOMS.tasks), "samples": 48, "rooms": RoomsConfig(train_scenes=6)})
    for name in ("a", "b"):
        build_dataset(data, 11, "train", tmp_path / name)
    assert (tmp_path / "a" / "index.jsonl").read_bytes() == (tmp_path / "b" / "index.jsonl").read_bytes()


@pytest.mark.parametrize("name", sorted(task.name for task in choose_tasks(["multi", "single"], False)))
def test_surface_points_stand_in_for_objects(name: str) -> None:
    """Without objects, marks are points on surfaces and golds are about the places under them."""
    room = Room(21)
    room.objects = ()
    views = SceneViews(room, 0.0, 1.0)
    task = TASKS[name]
    made = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        try:
            chosen = views.draw(task.views, rng)
            question = task.make(chosen, rng)
        except Refused:
            continue
        made += 1
        places = [np.array(place) for place in question.gold.get("points", [])]
        assert len(places) == len(question.marks)
        for mark, place in zip(question.marks, places, strict=True):
            assert len(mark.xy) == 2
            frame = chosen.frames[mark.view]
            u, v = int(mark.xy[0] * 0.112), int(mark.xy[1] * 0.112)
            camera = np.linalg.solve(frame.pose, np.append(place, 1))[:3]
            assert frame.depth[v, u] == pytest.approx(camera[2], abs=1e-4)
            pixel = frame.intrinsics @ camera / camera[2]
            assert pixel[:2] == pytest.approx([u, v], abs=0.51)
        if name.startswith("distance_prediction_oo"):
            assert question.answer == f"{np.linalg.norm(places[0] - places[1]):.1f}"
        assert "Measure at centers" not in question.text
    assert made > 10
