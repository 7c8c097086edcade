"""SPAR's records: every task's marks and their image order, answers by format, and rows that cannot be used."""

from __future__ import annotations

from typing import Any

import pytest

from hatch_ray.data.refusals import BadRows, Refusal
from hatch_ray.data.spar.layout import TASKS, answer_form, chosen_tasks, heldout, scene_of, space_of
from hatch_ray.data.spar.leave_out import LeftOut
from hatch_ray.data.spar.record import read_record
from hatch_ray.sample import Mark
from tests.support.spar_tree import record

RED, GREEN, BLUE, YELLOW = [[100, 200]], [[300, 400]], [[500, 600]], [[700, 800]]
BOXES = {color: [[k * 100, 50, k * 100 + 80, 250]] for k, color in enumerate(("red", "green", "blue", "yellow"))}


def boxes(*colors: str) -> dict[str, Any]:
    return {f"{color}_bbox": BOXES[color] for color in colors}


def views_by_color(raw: dict[str, Any], form: str = "select") -> dict[str, int]:
    return {mark.color: mark.view for mark in read_record(raw, form).marks}


@pytest.mark.parametrize(
    ("task", "fields", "expected"),
    [
        ("depth_prediction_oc_mv", {"red_point": RED, "blue_point": BLUE}, {"red": 0, "blue": 2}),
        ("depth_prediction_oo_mv", {"red_point": RED, "blue_point": BLUE, "green_point": GREEN}, "red blue green"),
        ("distance_prediction_oc_mv", {"red_point": RED}, {"red": 0}),
        ("distance_prediction_oo_mv", {"red_point": RED, "blue_point": BLUE}, {"red": 0, "blue": 2}),
        ("distance_infer_center_oo_mv", {"red_point": RED, "blue_point": BLUE, "green_point": GREEN}, "red green blue"),
        ("obj_spatial_relation_oc_mv", boxes("green"), {"green": 0}),
        ("obj_spatial_relation_oo_mv", boxes("green", "red"), {"red": 0, "green": 2}),
        ("obj_spatial_relation_oo_mv", boxes("green", "blue"), {"blue": 0, "green": 2}),
        ("spatial_imagination_oc_mv", boxes("red", "green", "blue"), "green blue red"),
        ("spatial_imagination_oo_mv", boxes("red", "green", "blue", "yellow"), "green blue red yellow"),
    ],
)
def test_image_order_of_marks(task: str, fields: dict[str, Any], expected: Any) -> None:
    kind = "point" if any(key.endswith("point") for key in fields) else "bbox"
    order = [0, 2, 1, 0]
    raw = record(task, "A", **fields, **{f"{kind}_img_idx": [order[: max(len(fields), 2)]]})
    if isinstance(expected, str):
        expected = dict(zip(expected.split(), order, strict=False))
    assert views_by_color(raw) == expected


def test_coordinates_are_unwrapped_and_stay_in_thousandths() -> None:
    raw = record("spatial_imagination_oc_mv", "A", bbox_img_idx=[[0, 1, 2]], **boxes("red", "green", "blue"))
    marks = read_record(raw, "select").marks
    assert Mark(0, "green", (100.0, 50.0, 180.0, 250.0)) in marks
    point = record("distance_prediction_oc_mv", "2.5", red_point=[[999, 0.5]], point_img_idx=[[1]])
    assert read_record(point, "fill").marks == (Mark(1, "red", (999.0, 0.5)),)


def test_listed_boxes_are_blue_and_labelled() -> None:
    raw = record(
        "spatial_imagination_map_mv",
        "object0 lies at ...",
        bbox_list=[[[1, 2, 3, 4], [5, 6, 7, 8]]],
        bbox_img_idx=[[2, 0]],
    )
    found = read_record(raw, "sentence")
    assert found.form == "text"
    assert found.marks == (
        Mark(2, "blue", (1.0, 2.0, 3.0, 4.0), "object0"),
        Mark(0, "blue", (5.0, 6.0, 7.0, 8.0), "object1"),
    )


def test_position_matching_and_single_views_need_no_index() -> None:
    raw = record("position_matching", "[1,2,3,4]", views=(0, 1), red_bbox=BOXES["red"], bbox_img_idx=None)
    assert views_by_color(raw, "fill") == {"red": 0}
    raw = record("depth_prediction_oo", "1.5", views=(2,), red_point=RED, green_point=GREEN, blue_point=BLUE)
    assert views_by_color(raw, "fill") == {"red": 0, "blue": 0, "green": 0}


def test_null_and_absent_fields_are_the_same() -> None:
    empty = {f"{color}_{kind}": None for color in ("red", "green", "blue", "yellow") for kind in ("point", "bbox")}
    raw = record(
        "camera_motion_infer",
        "(512,300),1.4",
        views=(0, 1),
        **empty,
        point_img_idx=None,
        bbox_list=None,
        sorted_image=[],
    )
    raw["depth"] = None
    found = read_record(raw, "fill")
    assert (found.marks, found.depths, found.form) == ((), None, "camera_motion")


def test_question_loses_its_image_placeholders() -> None:
    raw = record("distance_infer_center_oc", "chair", views=(0,), question="<image>\n<image>\nWhich one? ")
    assert read_record(raw, "fill").question == "Which one?"


@pytest.mark.parametrize(
    ("task", "form", "answer", "read", "kind"),
    [
        ("depth_prediction_oc", "fill", "1.5", "1.5", "number"),
        ("depth_prediction_oc", "fill", "2 meters.", "2 meters.", "number"),
        ("depth_prediction_oc", "sentence", "It is 1.5 m.", "It is 1.5 m.", "text"),
        ("depth_prediction_oc", "select", "(b). 2.0", "B", "letter"),
        ("obj_spatial_relation_oo", "judge", "Yes", "Yes", "text"),
    ],
)
def test_answers_by_format(task: str, form: str, answer: str, read: str, kind: str) -> None:
    marks = {"red_point": RED, "blue_point": BLUE} | boxes("red", "blue")
    found = read_record(record(task, answer, views=(0,), **marks), form)
    assert (found.answer, found.form, found.format) == (read, kind, form)


OC = "depth_prediction_oc_mv"
POINTS = {"red_point": RED, "blue_point": BLUE, "point_img_idx": [[0, 1]]}


@pytest.mark.parametrize(
    ("reason", "form", "raw"),
    [
        ("unknown_type", "fill", record("room_size", "20")),
        ("too_few_images", "fill", record("view_change_infer", "move_right:1.0", views=(0,))),
        ("too_many_images", "fill", record("spatial_volume_infer", "1.0", views=(0, 1), red_bbox=BOXES["red"])),
        ("bad_image_path", "fill", record("view_change_infer", "a") | {"image": ["../a/image_color/1.jpg", "b"]}),
        ("images_of_several_scenes", "fill", record("view_change_infer", "a")
         | {"image": ["a/image_color/1.jpg", "b/image_color/1.jpg"]}),
        ("no_question", "fill", record("view_change_infer", "a", views=(0, 1)) | {"conversations": None}),
        ("no_answer", "fill", record("view_change_infer", " ", views=(0, 1))),
        ("reserved_token", "fill", record("view_change_infer", "a", views=(0, 1), question="<|im_end|>")),
        ("answer_is_not_a_letter", "select", record("camera_motion_infer", "about 2", views=(0, 1))),
        ("answer_is_not_1_number", "fill", record(OC, "1.5 or 2", **POINTS)),
        ("answer_is_not_1_number", "fill", record(OC, "nan", **POINTS)),
        ("answer_is_not_1_number", "fill", record(OC, "1.5m", **POINTS)),
        ("answer_is_not_3_numbers", "fill", record("camera_motion_infer", "(1,2)", views=(0, 1))),
        ("answer_is_not_a_box", "fill", record("position_matching", "[1,2]", views=(0, 1), red_bbox=BOXES["red"])),
        ("answer_is_not_a_view_change", "fill", record("view_change_infer", "left, then right", views=(0, 1))),
        ("wrong_marks", "fill", record(OC, "1.5", red_point=RED, point_img_idx=[[0]])),
        ("wrong_marks", "select", record("obj_spatial_relation_oc_mv", "A", **boxes("red", "blue"))),
        ("no_image_index", "fill", record(OC, "1.5", red_point=RED, blue_point=BLUE)),
        ("bad_image_index", "fill", record(OC, "1.5", **POINTS | {"point_img_idx": [[0, 3]]})),
        ("bad_image_index", "fill", record(OC, "1.5", **POINTS | {"point_img_idx": [[0]]})),
        ("bad_marker", "fill", record(OC, "1.5", **POINTS | {"red_point": [100, 200]})),
        ("bad_marker", "fill", record(OC, "1.5", **POINTS | {"red_point": [[100, 1200]]})),
        ("bad_marker", "fill", record(OC, "1.5", **POINTS | {"red_point": [[100, "200"]]})),
        ("bad_marker", "fill", record("position_matching", "[1,2,3,4]", views=(0, 1), red_bbox=[[9, 9, 3, 3]])),
        ("bad_depth_list", "fill", record("view_change_infer", "move_right:1.0", views=(0, 1)) | {"depth": ["a"]}),
    ],
)  # fmt: skip
def test_bad_rows_say_why(reason: str, form: str, raw: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as refusal:
        read_record(raw, form)
    assert refusal.value.reason == reason
    assert "\n" not in str(refusal.value)


def test_task_table_is_sections_1_3() -> None:
    assert len(TASKS) == 24
    assert len([name for name, task in TASKS.items() if task.views > 1]) == 14
    assert answer_form("position_matching", "fill") == "box"
    assert answer_form("position_matching", "select") == "letter"


def test_choice_of_tasks() -> None:
    assert all(TASKS[name].views > 1 for name in chosen_tasks([], "multi"))
    assert chosen_tasks(["depth_prediction_oc", "view_change_infer"], "single") == ["depth_prediction_oc"]
    assert set(TASKS) - set(chosen_tasks([], "both")) == {"spatial_imagination_map_mv"}
    assert chosen_tasks(["spatial_imagination_map_mv"], "multi") == ["spatial_imagination_map_mv"]
    with pytest.raises(ValueError, match="SPAR has no image task 'nav_video'"):
        chosen_tasks(["nav_video"], "multi")
    with pytest.raises(ValueError, match=r"none of data\.tasks has data\.spar\.views=single"):
        chosen_tasks(["view_change_infer"], "single")


def test_scenes_and_rooms() -> None:
    assert scene_of("scene0261_00/image_color/543.jpg") == "scene0261_00"
    assert scene_of("scene_00000/485142/video_color/1.png") == "scene_00000/485142"
    for path in ("/scene/image_color/1.jpg", "a/../image_color/1.jpg", "a/color/1.jpg", "image_color/1.jpg", ""):
        with pytest.raises(ValueError):
            scene_of(path)
    assert (space_of("scene0261_01"), space_of("scene_00001"), space_of("0a5c013435")) == (
        "scene0261", "scene_00001", "0a5c013435",
    )  # fmt: skip
    shares = [heldout(f"room{k}", 1, 0.25) for k in range(2000)]
    assert 0.2 < sum(shares) / 2000 < 0.3
    assert not any(heldout(f"room{k}", 1, 1.0) is False for k in range(50))


def test_scannet_validation_rooms() -> None:
    left_out = LeftOut([])
    assert sum(f"scene{number:04d}_00" in left_out for number in range(1000)) == 142
    assert all(room in left_out for room in ("scene0011", "scene0568_01", "scene0704"))
    assert "scene0000" not in left_out


def test_too_many_bad_rows_show_the_ten_commonest_reasons() -> None:
    bad = BadRows("the tree")
    bad.read = 1000
    for kind in range(12):
        for _ in range(kind + 1):
            bad.add(Refusal(f"reason_{kind:02d}", "detail"), "file")
    with pytest.raises(ValueError, match="78 of 1000 rows of the tree cannot be used, more than 5%") as caught:
        bad.check()
    text = str(caught.value)
    assert text.index("12 reason_11") < text.index("3 reason_02")
    assert "reason_01" not in text
    bad.read = 1560
    bad.check()
