"""Our datasets in SPAR's layout and back: the same samples. And the measured rotation convention."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from hatch_ray.config_sections import DataConfig, RoomsConfig, SparConfig
from hatch_ray.data.build import build_dataset
from hatch_ray.data.spar.layout import TASKS
from hatch_ray.data.store import read_dataset
from hatch_ray.data.writer import sample_to_row
from hatch_ray.geometry.view_change import Convention, view_change
from hatch_ray.sample import Mark, Sample
from tests.support.datasets import build_splits, write_dataset
from tests.support.spar_tree import SparTree, frames, record
from tools import spar_check, spar_export
from tools.spar_check import check_conventions, parse_answer
from tools.spar_export import export_spar

ROOMS = DataConfig(
    tasks=["multi", "single", "spatial_imagination_map_mv"],
    formats=["fill", "select"],
    samples=120,
    heldout_samples=48,
    rooms=RoomsConfig(train_scenes=12, heldout_scenes=6),
)


def spar(root: Path, **options: Any) -> DataConfig:
    return DataConfig(
        kind="spar", root=root, tasks=list(TASKS), samples=10_000, heldout_fraction=0.0001,
        spar=SparConfig(formats=["select", "fill", "sentence"], views="both", **options),
    )  # fmt: skip


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and heldout/ of rooms, every task and both formats."""
    path = tmp_path_factory.mktemp("rooms") / "rooms"
    build_splits(ROOMS, 3, path)
    return path


def plain(samples: Sequence[Sample]) -> dict[str, Any]:
    """What must survive the way there and back, by question, answer, place and marks."""
    found = {}
    for sample in samples:
        row = sample_to_row(sample)
        depths = [view.depth_path.read_bytes() if view.depth_path else None for view in sample.views]
        images = [view.image_path.read_bytes() for view in sample.views]
        for view in row["views"]:
            del view["image"], view["depth"]
        marks = sorted(row["marks"], key=lambda mark: (mark["view"], mark["color"], mark["xy"]))
        kept = {key: row[key] for key in ("scene", "task", "answer_form", "question", "answer", "views", "plans")}
        key = json.dumps([kept, marks])
        assert key not in found
        found[key] = kept | {"marks": marks, "depths": depths, "images": images}
    return found


def test_there_and_back_gives_the_same_samples(rooms: Path, tmp_path: Path) -> None:
    counts = export_spar(rooms, tmp_path / "out")
    before = read_dataset(rooms / "train")
    assert {name.split("/")[0] for name in counts} == {sample.task for sample in before}
    assert {name.split("/")[1] for name in counts} == {"fill", "select", "sentence"}
    build_dataset(spar(tmp_path / "out"), 0, "train", tmp_path / "back")
    after = read_dataset(tmp_path / "back")
    assert len(after) == len(before) == 120
    assert plain(after) == plain(before)
    build_dataset(spar(tmp_path / "out"), 5, "train", tmp_path / "other")
    assert [s.question for s in read_dataset(tmp_path / "other")] != [s.question for s in after], "drawn by seed"


def test_real_frames_there_and_back(redkitchen: Path, tmp_path: Path) -> None:
    """Posed frames without boxes mark points; their world is turned to z up, so plans stay and poses turn."""
    data = DataConfig(
        kind="rgbd", root=redkitchen, samples=60, image_size=112, frame_step=8, formats=["fill", "select"]
    )
    build_dataset(data, 1, "train", tmp_path / "kitchen")
    export_spar(tmp_path / "kitchen", tmp_path / "out")
    build_dataset(spar(tmp_path / "out"), 0, "train", tmp_path / "back")
    before, after = (
        {
            (sample.question, sample.answer, sample.task, sample.answer_form): sample
            for sample in read_dataset(tmp_path / name)
        }
        for name in ("kitchen", "back")
    )
    assert set(before) == set(after) and len(after) > 50
    for key, sample in after.items():
        assert sorted(sample.marks, key=str) == sorted(before[key].marks, key=str)
        assert [plan.atoms for plan in sample.plans] == [plan.atoms for plan in before[key].plans]
    assert any(len(mark.xy) == 2 for (_, _, task, _), s in after.items() if "relation" in task for mark in s.marks)


def test_every_task_is_there(rooms: Path) -> None:
    assert {sample.task for sample in read_dataset(rooms / "train")} == set(TASKS)


def test_layout_is_the_published_one(rooms: Path, tmp_path: Path) -> None:
    export_spar(rooms, tmp_path / "out")
    source = tmp_path / "out" / "spar" / "scannet"
    assert sorted(path.name for path in source.iterdir()) == ["images", "qa_jsonl"]
    assert sorted(path.name for path in (source / "qa_jsonl").iterdir()) == ["train", "val"]
    for path in source.glob("qa_jsonl/*/*/*/*.jsonl"):
        lines = path.read_text().splitlines()
        assert path.name == f"{path.parent.name}_{len(lines)}.jsonl"
        assert all(json.loads(line)["type"] == path.parent.parent.name for line in lines)
    (scene, *_) = sorted((source / "images").iterdir())
    assert sorted(path.name for path in scene.iterdir()) == ["image_color", "image_depth", "intrinsic", "pose"]
    assert np.loadtxt(scene / "intrinsic" / "intrinsic_depth.txt").shape == (4, 4)
    row = json.loads(
        next(source.glob("qa_jsonl/train/distance_infer_center_oo_mv/fill/*.jsonl")).read_text().split("\n")[0]
    )
    assert len(row["red_point"]) == 1 and len(row["red_point"][0]) == 2
    assert len(row["point_img_idx"][0]) == 3
    assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"]
    assert len(row["depth"]) == len(row["image"])


def test_heldout_rooms_become_val_and_are_left_out(rooms: Path, tmp_path: Path) -> None:
    export_spar(rooms, tmp_path / "out")
    build_dataset(spar(tmp_path / "out"), 0, "train", tmp_path / "back")
    scenes = {sample.scene for sample in read_dataset(tmp_path / "back")}
    assert scenes & {sample.scene for sample in read_dataset(rooms / "heldout")} == set()


def test_image_index_orders_in_the_file(rooms: Path, tmp_path: Path) -> None:
    sample = read_dataset(rooms / "train")[0]
    marks = {"red": 0, "blue": 1, "green": 2}
    points = tuple(Mark(view, color, (100.0, 200.5)) for color, view in marks.items())  # type: ignore[arg-type]
    three = next(s for s in read_dataset(rooms / "train") if len(s.views) == 3)
    sample = replace(three, task="distance_infer_center_oo_mv", marks=points)
    write_dataset(tmp_path / "one", [sample])
    export_spar(tmp_path / "one", tmp_path / "out")
    (path,) = (tmp_path / "out").glob("spar/scannet/qa_jsonl/train/*/*/*.jsonl")
    row = json.loads(path.read_text())
    assert row["point_img_idx"] == [[0, 2, 1]], "[red, GREEN, BLUE]"
    assert row["green_point"] == [[100, 200.5]]


def test_what_the_layout_cannot_hold_is_refused(rooms: Path, tmp_path: Path) -> None:
    (sample, *_) = (s for s in read_dataset(rooms / "train") if s.task == "view_change_infer")
    bad = {
        "no image task 'other'": replace(sample, task="other"),
        "no place for the marks red": replace(sample, marks=(Mark(0, "red", (1, 2)),)),
        "world up is unknown": replace(sample, meta={"up": None}),
    }
    for message, wrong in bad.items():
        write_dataset(tmp_path / message[:5], [wrong])
        with pytest.raises(ValueError, match=message):
            export_spar(tmp_path / message[:5], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="source 'mars' is not one of SPAR's"):
        export_spar(rooms, tmp_path / "out", "mars")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        export_spar(rooms, tmp_path / "out")


def test_worlds_are_turned_to_z_up(rooms: Path, tmp_path: Path) -> None:
    (sample, *_) = (s for s in read_dataset(rooms / "train") if s.task == "view_change_infer")
    turn = Rotation.from_euler("xz", [-90, 30], degrees=True)
    views = []
    for view in sample.views:
        assert view.pose is not None
        pose = view.pose.copy()
        pose[:3] = turn.as_matrix() @ pose[:3]
        views.append(replace(view, pose=pose))
    turned = replace(sample, views=tuple(views), meta={"up": turn.apply([0, 0, 1]).tolist()})
    write_dataset(tmp_path / "one", [turned])
    export_spar(tmp_path / "one", tmp_path / "out")
    build_dataset(spar(tmp_path / "out"), 0, "train", tmp_path / "back")
    (back,) = read_dataset(tmp_path / "back")
    assert back.plans[0].atoms == sample.plans[0].atoms
    assert back.plans[0].frame is not None and sample.plans[0].frame is not None
    assert back.plans[0].frame.pitch_deg == pytest.approx(sample.plans[0].frame.pitch_deg)


def answer(change: dict[str, float], decimals: int = 1) -> str:
    def piece(plus: str, minus: str, value: float, places: int) -> str:
        return f"{plus if value >= 0 else minus}:{abs(value):.{places}f}"

    return ",".join(
        [
            piece("move_right", "move_left", change["right"], decimals),
            piece("move_up", "move_down", change["up"], decimals),
            piece("move_forward", "move_backward", change["forward"], decimals),
            piece("rotate_up", "rotate_down", change["pitch"], 0),
            piece("rotate_right", "rotate_left", change["yaw"], 0),
        ]
    )


def released(root: Path, convention: Convention, seeds: Sequence[int] = range(8)) -> SparTree:
    """A tree whose answers follow a convention; cameras look down, as scans do."""
    tree = SparTree(root)
    rows = []
    for seed in seeds:
        scene = f"scene{seed:04d}_00"
        tree.scene(scene, seed)
        poses = []
        for number, frame in enumerate(frames(seed)):
            pose = frame.pose.copy()
            pose[:3, :3] = pose[:3, :3] @ Rotation.from_euler("x", -35 + 10 * number, degrees=True).as_matrix()
            np.savetxt(tree.images("scannet") / scene / "pose" / f"{number * 10}.txt", pose)
            poses.append(pose)
        for i in range(len(poses)):
            for j in range(len(poses)):
                if i != j:
                    change = view_change(poses[i], poses[j], np.array([0, 0, 1]), convention)
                    rows.append(record("view_change_infer", answer(change), scene, (i, j), number=len(rows)))
    tree.rows(rows)
    return tree


@pytest.mark.parametrize("convention", ["camera", "gravity"])
def test_check_finds_the_convention_of_the_answers(tmp_path: Path, convention: Convention) -> None:
    tree = released(tmp_path, convention)
    check = check_conventions(tree.root)
    assert (check.verdict, check.rows) == (convention, 96)
    assert check.telling >= 20
    assert check.telling_deg[convention] < 1.1, "rounding alone"
    assert check.nearer[convention] == check.telling
    assert max(check.translation_m.values()) < 0.05
    shown = CliRunner().invoke(spar_check.app, [str(tree.root)])
    assert shown.exit_code == 0, shown.output
    assert f"released answers agree with: {convention}" in shown.output
    assert "rows compared: 96 (refused: none)" in shown.output


def test_check_does_not_guess(tmp_path: Path) -> None:
    tree = released(tmp_path / "few", "camera", seeds=[1])
    assert check_conventions(tree.root).verdict is None
    assert "are needed" in check_conventions(tree.root).reason
    scaled = released(tmp_path / "scaled", "camera")
    for path in scaled.root.rglob("pose/*.txt"):
        pose = np.loadtxt(path)
        pose[:3, 3] *= 3
        np.savetxt(path, pose)
    check = check_conventions(scaled.root)
    assert check.verdict is None
    assert "translation itself disagrees" in check.reason


def test_check_without_rows_or_poses(tmp_path: Path) -> None:
    tree = SparTree(tmp_path)
    tree.scene("scene0001_00", rgbd=False)
    tree.rows([record("camera_motion_infer", "(1,2),3.0", views=(0, 1))])
    with pytest.raises(ValueError, match="has no view_change_infer row"):
        check_conventions(tmp_path)
    tree.rows(
        [record("view_change_infer", "move_right:1.0", views=(0, 1)), record("view_change_infer", "x:1", views=(0, 1))]
    )
    with pytest.raises(
        ValueError, match=r"1 missing_pose.*1 answer_is_not_a_view_change|1 answer_is_not_a_view_change.*"
    ):
        check_conventions(tmp_path)


def test_answers_of_the_check() -> None:
    assert parse_answer("move_left:2.6, move_down:0.1,move_back:0.2,rotate_up:10,rotate_left:0.") == {
        "right": -2.6, "up": -0.1, "forward": -0.2, "pitch": 10, "yaw": 0,
    }  # fmt: skip


def test_command_line(rooms: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(spar_export.app, [str(rooms / "train"), str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    assert "120 rows" in shown.output
    assert " position_matching/fill" in shown.output
