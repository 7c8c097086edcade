"""SPAR trees as datasets: rows by type, splits by room, what is left out, depth, poses and units, and bad trees."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from hatch_ray.config import ConfigError, make_config
from hatch_ray.config_sections import DataConfig, SparConfig
from hatch_ray.data.build import build_dataset
from hatch_ray.data.images import load_depth, save_depth
from hatch_ray.data.rooms import Room, RoomOptions
from hatch_ray.data.spar.index import open_index
from hatch_ray.data.spar.reader import check_spar
from hatch_ray.data.store import model_images, read_dataset, read_scenes
from hatch_ray.geometry.overlap import PosedDepth, overlap_matrices
from hatch_ray.learning.pasta import collect_pairs, compute_overlap
from hatch_ray.protocol.prompt import gold_reply
from hatch_ray.report.data_page import show_dataset
from hatch_ray.sample import Sample
from tests.support.datasets import build_splits
from tests.support.spar_tree import SparTree, frames, record

CHANGE = "move_right:0.3,move_up:0.1,move_forward:0.8,rotate_up:4,rotate_left:9"


def config(tree: SparTree, samples: int = 50, fraction: float = 0.001, **spar: Any) -> DataConfig:
    options = {key: spar.pop(key) for key in ("tasks", "max_views", "check_geometry", "convention") if key in spar}
    return DataConfig(
        kind="spar", root=tree.root, samples=samples, heldout_samples=samples, heldout_fraction=fraction,
        spar=SparConfig(**spar), **options,
    )  # fmt: skip


def read(tree: SparTree, **options: Any) -> list[Sample]:
    out = tree.root / "dataset"
    build_dataset(config(tree, **options), 1, "train", out)
    return read_dataset(out)


def summary(tree: SparTree) -> dict[str, Any]:
    return json.loads((tree.root / "dataset" / "summary.json").read_text())  # type: ignore[no-any-return]


def changes(count: int, scene: str = "scene0001_00", start: int = 0) -> list[dict[str, Any]]:
    return [record("view_change_infer", CHANGE, scene, (k % 3, k % 3 + 1), number=start + k) for k in range(count)]


@pytest.fixture
def tree(tmp_path: Path) -> SparTree:
    tree = SparTree(tmp_path)
    tree.scene("scene0001_00")
    return tree


def test_a_row_becomes_a_sample_with_depth_poses_and_plans(tree: SparTree) -> None:
    tree.rows(
        [
            record(
                "depth_prediction_oo_mv", "1.5", views=(0, 1, 3),
                red_point=[[100, 200]], blue_point=[[300, 400]], green_point=[[500, 600]], point_img_idx=[[0, 2, 1]],
            )
        ]
    )  # fmt: skip
    (sample,) = read(tree)
    assert (sample.scene, sample.task, sample.answer_form, sample.answer) == (
        "scene0001_00", "depth_prediction_oo_mv", "number", "1.5",
    )  # fmt: skip
    assert [(mark.color, mark.view) for mark in sample.marks] == [("red", 0), ("blue", 2), ("green", 1)]
    assert sample.meta["format"] == "fill"
    assert [(plan.source, plan.target) for plan in sample.plans] == sample.pairs
    assert all(plan.frame is not None for plan in sample.plans), "plans are against gravity: z is up"
    for view, number in zip(sample.views, (0, 1, 3), strict=True):
        frame = frames(3)[number]
        assert view.pose is not None and view.intrinsics is not None and view.depth_intrinsics is not None
        np.testing.assert_allclose(view.pose, frame.pose)
        np.testing.assert_allclose(view.depth_intrinsics, frame.depth_intrinsics)
        assert view.intrinsics[0, 0] == pytest.approx(2 * frame.depth_intrinsics[0, 0]), "colour has its own grid"
        assert view.depth_path is not None
        np.testing.assert_allclose(load_depth(view.depth_path), frame.depth, atol=0.00051)
        original = tree.images("scannet") / "scene0001_00" / "image_color" / f"{number * 10}.jpg"
        assert view.image_path.read_bytes() == original.read_bytes(), "the file stays unmarked and as it was"
    seen = np.asarray(model_images(sample, 10**6)[0])
    assert (seen[int(0.2 * 120), int(0.1 * 160)] == (255, 0, 0)).all(), "the model's copy is marked"
    assert read_scenes(tree.root / "dataset")["scene0001_00"][0] is not None


def test_patch_overlap_and_the_teachers_reply_come_from_the_published_files(tree: SparTree) -> None:
    tree.rows([record("view_change_infer", CHANGE, views=(0, 1))])
    (sample,) = read(tree)
    (pair,) = collect_pairs([sample])
    overlap = compute_overlap([pair], grid=4, stride=1)
    depths = [
        PosedDepth(np.rint(frame.depth * 1000) / np.float32(1000), frame.depth_intrinsics, frame.pose)
        for frame in frames(3)[:2]
    ]
    if pair.x.image_path != sample.views[0].image_path:
        depths.reverse()
    np.testing.assert_allclose(overlap[0], overlap_matrices(*depths, 4, 1)[2], atol=1e-3)
    assert overlap.sum() > 0.5
    assert gold_reply(sample, "actions").startswith('<action>[{"from":0,"to":1,')
    assert gold_reply(sample, "actions").endswith(f"<answer>{CHANGE}</answer>")


def test_rows_go_by_type_not_by_folder_and_copies_count_once(tree: SparTree) -> None:
    tree.scene("0a5c013435", 4, source="scannetpp")
    marks = {"red_point": [[100, 200]], "point_img_idx": [[1]]}
    distances = [record("distance_prediction_oc_mv", f"{k}.5", "0a5c013435", number=k, **marks) for k in range(3)]
    tree.rows(distances, source="scannetpp")
    extra = record("distance_prediction_oc_mv", "9.5", "0a5c013435", number=9, **marks)
    own = changes(2, "0a5c013435")
    tree.rows([*own, *distances, extra], task="view_change_infer", source="scannetpp")
    samples = read(tree)
    assert sorted(sample.answer for sample in samples if sample.task == "distance_prediction_oc_mv") == [
        "0.5", "1.5", "2.5", "9.5",
    ]  # fmt: skip
    assert summary(tree)["by_task"] == {"distance_prediction_oc_mv": 4, "view_change_infer": 2}
    assert summary(tree)["rows"]["copies_of_the_same_line"] == 3


def test_formats_sources_tasks_and_views_are_chosen(tree: SparTree) -> None:
    single = record("distance_prediction_oc", "2.0", views=(1,), red_point=[[100, 200]])
    tree.rows([single])
    tree.rows([single | {"id": "s"}], form="sentence")
    tree.rows(changes(2))
    tree.rows([record("camera_motion_infer", "B", views=(0, 1))], form="select")
    assert {sample.task for sample in read(tree)} == {"view_change_infer", "camera_motion_infer"}
    for number, (options, expected) in enumerate(
        [
            ({"views": "single"}, {("distance_prediction_oc", "number")}),
            ({"views": "single", "formats": ["sentence"]}, {("distance_prediction_oc", "text")}),
            ({"formats": ["select"]}, {("camera_motion_infer", "letter")}),
            ({"tasks": ["view_change_infer"], "views": "both"}, {("view_change_infer", "view_change")}),
        ]
    ):
        out = tree.root / f"dataset{number}"
        build_dataset(config(tree, **options), 1, "train", out)
        assert {(sample.task, sample.answer_form) for sample in read_dataset(out)} == expected
    single_sample = read_dataset(tree.root / "dataset0")[0]
    assert (len(single_sample.views), single_sample.plans) == (1, ())
    with pytest.raises(ValueError, match=r"no row of .* can be used for train"):
        build_dataset(config(tree, sources=["structured3d"]), 1, "train", tree.root / "none")


def test_two_views_as_well_as_three(tree: SparTree) -> None:
    marks = {"red_point": [[100, 200]], "point_img_idx": [[1]]}
    rows = [record("distance_prediction_oc_mv", "2.0", views=views, **marks) for views in ((0, 1), (0, 1, 2))]
    tree.rows(rows)
    assert sorted(len(sample.plans) for sample in read(tree)) == [1, 3]
    build_dataset(config(tree, max_views=2), 1, "train", tree.root / "two")
    assert [len(sample.views) for sample in read_dataset(tree.root / "two")] == [2]


def test_rooms_are_split_and_draws_are_random_by_seed(tree: SparTree) -> None:
    for number in range(1, 13):
        for scan in range(2):
            name = f"scene{number:04d}_{scan:02d}"
            tree.scene(name, 3 + number % 2, rgbd=True)
    tree.rows(
        [row for number in range(1, 13) for scan in range(2) for row in changes(3, f"scene{number:04d}_{scan:02d}")]
    )
    data = config(tree, samples=20, fraction=0.5)
    build_splits(data, 1, tree.root / "both")
    train, heldout = (read_dataset(tree.root / "both" / split) for split in ("train", "heldout"))
    assert len(train) == 20
    assert {sample.scene[:9] for sample in train} & {sample.scene[:9] for sample in heldout} == set()
    build_dataset(data, 1, "train", tree.root / "again")
    assert [s.question + s.scene for s in read_dataset(tree.root / "again")] == [s.question + s.scene for s in train]
    build_dataset(data.model_copy(update={"heldout_fraction": 0.001}), 2, "train", tree.root / "other")
    assert [s.scene for s in read_dataset(tree.root / "other")] != [s.scene for s in train]
    assert len({s.scene for s in train}) > 3, "rows are drawn over the whole tree, not from its beginning"


def test_validation_rooms_and_lists_are_left_out(tree: SparTree) -> None:
    scenes = ["scene0001_00", "scene0011_00", "scene0002_00", "scene0003_00", "scene0003_01"]
    for name in scenes[1:]:
        tree.scene(name)
    tree.scene("scene_00007", source="structured3d")
    tree.rows([row for name in scenes for row in changes(2, name)])
    tree.rows(changes(2, "scene_00007"), source="structured3d")
    tree.rows(changes(1, "scene0002_00"), split="val")
    bench = tree.root / "SPAR-Bench"
    bench.mkdir()
    (bench / "ids.jsonl").write_text('{"id": "scene0003_00_41", "task": "a"}\n"scene_00007_3"\n')
    samples = read(tree, leave_out=[bench])
    assert {sample.scene for sample in samples} == {"scene0001_00"}
    counts = summary(tree)["rows"]
    assert (counts["rows_indexed"], counts["rows_asked_for"], counts["rows_after_leaving_out"]) == (13, 12, 2)
    assert counts["scenes_left_out"] == 5
    build_dataset(config(tree, leave_out_val=False), 1, "train", tree.root / "more")
    assert {s.scene for s in read_dataset(tree.root / "more")} == set(scenes) - {"scene0011_00"} | {"scene_00007"}


@pytest.mark.parametrize("name", ["list.txt", "list.json", "list.jsonl", "list.parquet"])
def test_lists_of_every_kind(tree: SparTree, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)
    tree.scene("scene0002_00")
    tree.rows([*changes(2), *changes(2, "scene0002_00")])
    path = tree.root / name
    if name.endswith(".parquet"):
        datasets.Dataset.from_list([{"id": "scene0002_00_7", "task": "a"}]).to_parquet(path)
    else:
        path.write_text(
            {"list.txt": "# scenes\nscene0002_00  # one\n", "list.json": '["scene0002_00"]'}.get(
                name, '{"id": "scene0002_00_7"}\n'
            )
        )
    assert {sample.scene for sample in read(tree, leave_out=[path])} == {"scene0001_00"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("", "names no scene"),
        ("17\n", "id 17 of .* names no scene"),
    ],
)
def test_useless_lists(tree: SparTree, content: str | None, message: str) -> None:
    tree.rows(changes(2))
    path = tree.root / "list.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tree, leave_out=[path])


def test_a_table_without_ids(tree: SparTree) -> None:
    tree.rows(changes(2))
    datasets.Dataset.from_list([{"name": "scene0002_00_7"}]).to_parquet(tree.root / "list.parquet")
    with pytest.raises(ValueError, match=r"list\.parquet has no readable column id"):
        read(tree, leave_out=[tree.root / "list.parquet"])


def refused(tree: SparTree, records: list[Any]) -> dict[str, int]:
    """Reasons of the bad ones among 60 good rows and these."""
    good = changes(60)
    tree.rows([*good, *records])
    samples = read(tree, samples=100)
    assert len(samples) == 60
    found = summary(tree)
    return found["refused"]["rows_refused"] | found["rows"]["refused_lines"]["rows_refused"]  # type: ignore[no-any-return]


def test_bad_lines_are_counted_and_skipped(tree: SparTree) -> None:
    no_type = record("view_change_infer", CHANGE, views=(0, 1))
    del no_type["type"]
    assert refused(tree, ["{broken", "[1]", json.dumps(no_type)]) == {
        "line_is_not_json": 1,
        "line_is_not_an_object": 1,
        "no_type": 1,
    }


def test_broken_frames_are_counted_and_skipped(tree: SparTree) -> None:
    folder = tree.images("scannet") / "scene0001_00"
    tree.scene("scene0002_00")
    other = tree.images("scannet") / "scene0002_00"
    (other / "image_color" / "10.jpg").write_bytes(b"not a picture")
    (other / "pose" / "30.txt").write_text("-inf -inf -inf -inf\n" * 4)
    bad = [
        record("view_change_infer", CHANGE, "scene0002_00", (0, 1)),
        record("view_change_infer", CHANGE, "scene0002_00", (2, 3)),
        record("view_change_infer", CHANGE, "scene0001_00", (0, 7)),
    ]
    assert folder.is_dir()
    assert refused(tree, bad) == {"unreadable_image": 1, "broken_pose": 1, "missing_image": 1}
    example = summary(tree)["refused"]["examples"]["broken_pose"][0]
    assert "view_change_infer/fill/fill_63.jsonl at byte" in example and "30.txt" in example


@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_more_than_five_percent_bad_rows_stop(tree: SparTree, value: str) -> None:
    tree.rows(changes(9))
    row = f"{value} 0 0 0\n"
    (tree.images("scannet") / "scene0001_00" / "pose" / "30.txt").write_text(row * 4)
    with pytest.raises(ValueError, match=r"3 of 9 rows of .* cannot be used, more than 5%: 3 broken_pose"):
        read(tree)
    assert not (tree.root / "dataset").exists()


def test_corrupt_files_stop_the_index(tree: SparTree) -> None:
    tree.rows([*changes(9), "{"])
    with pytest.raises(ValueError, match=r"1 of 10 rows of .* cannot be used, more than 5%: 1 line_is_not_json"):
        read(tree)
    assert not (tree.root / "spar" / "hatch-index").exists()


def test_structured3d_units(tree: SparTree) -> None:
    tree.scene("scene_00001", source="structured3d", pose_scale=1000.0)
    tree.rows(changes(2, "scene_00001"), source="structured3d")
    for sample in read(tree):
        for view in sample.views:
            number = int(view.image_path.stem) // 10
            assert view.pose is not None
            np.testing.assert_allclose(view.pose, frames(3)[number].pose, atol=1e-9)


def test_depth_that_holds_metres(tree: SparTree) -> None:
    tree.scene("scene_00001", source="structured3d")
    for path in (tree.images("structured3d") / "scene_00001" / "image_depth").iterdir():
        Image.fromarray(np.full((60, 80), 3, np.uint16)).save(path)
    tree.rows(changes(2, "scene_00001"), source="structured3d")
    view = read(tree, check_geometry=False)[0].views[0]
    assert view.depth_path is not None
    assert np.median(load_depth(view.depth_path)) == 3.0


def test_implausible_depth_and_intrinsics_of_another_grid(tree: SparTree) -> None:
    tree.rows(changes(2))
    folder = tree.images("scannet") / "scene0001_00"
    intrinsics = folder / "intrinsic" / "intrinsic_depth.txt"
    kept = intrinsics.read_text()
    np.savetxt(intrinsics, np.diag([600.0, 600.0, 1.0, 1.0]) + np.eye(4, k=2) * 320)
    with pytest.raises(ValueError, match="intrinsics_of_another_grid"):
        read(tree, check_geometry=False)
    intrinsics.write_text(kept)
    for path in (folder / "image_depth").iterdir():
        Image.fromarray(np.full((60, 80), 60_000, np.uint16)).save(path)
    with pytest.raises(ValueError, match="implausible_depth_units"):
        read(tree, check_geometry=False)


def test_the_same_frame_number_of_images_and_videos_are_two_files(tree: SparTree) -> None:
    row = record("view_change_infer", CHANGE, views=(0, 1))
    row["image"][0] = "scene0001_00/video_color/0.jpg"
    row["depth"] = None
    tree.rows([row, *changes(1)])
    names = {view.image_path.name for sample in read(tree) for view in sample.views}
    assert names == {"video-0.jpg", "0.jpg", "10.jpg"}


def test_spar_without_depth_trains_answers_alone(tmp_path: Path) -> None:
    tree = SparTree(tmp_path)
    tree.scene("scene0001_00", rgbd=False)
    tree.rows([row | {"depth": None} for row in changes(3)])
    sample = read(tree)[0]
    assert (sample.plans, sample.views[0].pose, sample.views[0].depth_path) == ((), None, None)
    assert summary(tree)["depth_and_poses"] is False
    data = config(tree)
    check_spar(data, ["qa_sft"])
    with pytest.raises(ConfigError, match=r"SPAR-7M without depth and poses; pasta, grpo need them .* SPAR-7M-RGBD"):
        check_spar(data, ["pasta", "qa_sft", "grpo"])


@pytest.mark.parametrize("rgbd", [True, False])
def test_the_data_page_shows_them(tmp_path: Path, rgbd: bool) -> None:
    tree = SparTree(tmp_path)
    tree.scene("scene0001_00", rgbd=rgbd)
    tree.rows(changes(3))
    read(tree)
    page = show_dataset(tmp_path / "dataset", tmp_path / "page.html", 3, 0)
    assert page.read_text().count("number 1?") == 1


def test_what_a_run_cannot_use_is_said_before_it_starts(tmp_path: Path) -> None:
    from actors.stages.recipe import check_inputs

    def check(**data: Any) -> None:
        check_inputs(make_config({"data": {"kind": "spar"} | data}))

    with pytest.raises(ConfigError, match=r"needs data\.root=PATH.*or data\.spar\.hub"):
        check()
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"holds no SPAR-7M: expected one of scannet/qa_jsonl.*found other"):
        check(root=tmp_path)
    with pytest.raises(ValueError, match="SPAR has no image task 'depth'"):
        check(root=tmp_path, tasks=["depth"])
    with pytest.raises(ValueError, match="is not a folder"):
        check(root=tmp_path / "nowhere")


def test_index_is_made_once_and_again_when_files_change(tree: SparTree) -> None:
    tree.rows(changes(3))
    root, folder = tree.root / "spar", tree.root / "index"
    assert len(open_index(root, folder)) == 3
    made = (folder / "rows.bin").stat()
    index = open_index(root, folder)
    again = (folder / "rows.bin").stat()
    assert (again.st_ino, again.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)  # not indexed again
    assert index.record(2)["id"] == "scene0001_00_2"
    assert index.where(0).endswith("fill_3.jsonl at byte 0")
    tree.rows(changes(4), split="val")
    assert len(open_index(root, folder)) == 7


def test_index_needs_a_folder_that_can_be_written(tree: SparTree) -> None:
    tree.rows(changes(3))
    (tree.root / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write the index .*data\.spar\.index"):
        open_index(tree.root / "spar", tree.root / "file" / "index")
    (tree.root / "full").mkdir()
    (tree.root / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else than an index"):
        open_index(tree.root / "spar", tree.root / "full")
    assert (tree.root / "full" / "notes.txt").read_text() == "mine"


def test_the_measurement_runs(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, "bench/spar_index.py", "--rows", "2000", "--draw", "100", "--out", str(out)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert figures["drawn"] == 100
    assert figures["peak_mib"] < 1024


def test_one_scene_name_in_two_sources_is_two_scenes(tree: SparTree) -> None:
    """No row shows a picture of one source with the pose of the other."""
    tree.scene("scene0001_00", seed=4, source="scannetpp")
    tree.rows(changes(3))
    tree.rows(changes(3, start=50), source="scannetpp")
    samples = read(tree)
    assert {sample.scene for sample in samples} in (
        {"scene0001_00", "scannetpp-scene0001_00"}, {"scene0001_00", "scannet-scene0001_00"},
    )  # fmt: skip
    for sample in samples:
        seed = 4 if sample.meta["source"] == "scannetpp" else 3
        for view, name in zip(sample.views, sample.meta["frames"], strict=True):
            number = int(Path(name).stem) // 10
            assert view.pose is not None
            np.testing.assert_allclose(view.pose, frames(seed)[number].pose, atol=1e-9)
            there = tree.images(sample.meta["source"]) / name
            assert view.image_path.read_bytes() == there.read_bytes()


def test_a_far_camera_costs_its_rows_alone(tree: SparTree) -> None:
    path = tree.images("scannet") / "scene0001_00" / "pose" / "0.txt"
    pose = np.loadtxt(path)
    pose[0, 3] += 25
    np.savetxt(path, pose)
    tree.rows([*changes(1), *(record("view_change_infer", CHANGE, views=(1, 2), number=k) for k in range(1, 40))])
    assert len(read(tree)) == 39
    refused = summary(tree)["refused"]
    assert refused["rows_refused"] == {"no_gold_actions": 1}
    assert "must lie in 0 to 20" in refused["examples"]["no_gold_actions"][0]


def test_a_tree_whose_poses_are_inverse_is_refused_and_can_be_read_so(tree: SparTree) -> None:
    tree.rows(changes(2))
    folder = tree.images("scannet") / "scene0002_00"
    room = Room(11, RoomOptions(width=80, height=60, n_views=12, heading_spread=10, step=(0.1, 0.2)))
    for part in ("image_color", "image_depth", "pose"):
        (folder / part).mkdir(parents=True)
    for number in range(12):
        frame = room.frame(number)
        Image.fromarray(frame.rgb).save(folder / "image_color" / f"{number}.jpg")
        save_depth(folder / "image_depth" / f"{number}.png", frame.depth)
        np.savetxt(folder / "pose" / f"{number}.txt", np.linalg.inv(frame.pose))
    (folder / "intrinsic").mkdir()
    np.savetxt(folder / "intrinsic" / "intrinsic_color.txt", room.intrinsics)
    with pytest.raises(ValueError, match=r"scannet/scene0002_00 do not fit .*data\.convention=world_to_camera "):
        read(tree)
    assert not (tree.root / "dataset").exists()
