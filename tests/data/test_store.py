"""Datasets on disk: the same from the same seed, whole or absent, and clear words when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hatch_ray.config_sections import DataConfig, RoomsConfig
from hatch_ray.data import build
from hatch_ray.data.build import build_dataset, build_splits
from hatch_ray.data.images import load_depth, load_image
from hatch_ray.data.rooms import Room
from hatch_ray.data.store import (
    DatasetWriter,
    is_dataset,
    read_dataset,
    read_scenes,
    sample_to_row,
    write_dataset,
)

DATA = DataConfig(samples=24, heldout_samples=12, max_views=2, rooms=RoomsConfig(train_scenes=4, heldout_scenes=3))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ and heldout/."""
    path = tmp_path_factory.mktemp("store") / "rooms"
    build_splits(DATA, 1, path)
    return path


def test_tasks_and_scenes_are_balanced(both: Path) -> None:
    summary = json.loads((both / "train" / "summary.json").read_text())
    assert len(summary["by_task"]) == 13
    assert set(summary["by_task"].values()) == {1, 2}
    assert summary["samples"] == summary["asked_for"] == len(read_dataset(both / "train")) == 24
    assert summary["scenes"] == 4
    assert summary["seed"] == 1
    assert sum(summary["refused_views_by_reason"].values()) > 0


def test_train_and_heldout_share_no_scene(both: Path) -> None:
    train, heldout = read_dataset(both / "train"), read_dataset(both / "heldout")
    assert {s.scene for s in train} & {s.scene for s in heldout} == set()
    assert {s.scene for s in train} == {f"room-{100_000 + k}" for k in range(4)}


def test_same_seed_same_bytes(both: Path, tmp_path: Path) -> None:
    build_dataset(DATA, 1, "train", tmp_path / "again")
    first = sorted(path.relative_to(both / "train") for path in (both / "train").rglob("*") if path.is_file())
    again = sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file())
    assert first == again
    for name in first:
        assert (both / "train" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_another_seed_gives_other_questions(both: Path, tmp_path: Path) -> None:
    build_dataset(DATA, 2, "train", tmp_path / "other")
    assert (tmp_path / "other" / "index.jsonl").read_bytes() != (both / "train" / "index.jsonl").read_bytes()


def test_views_on_disk_are_the_rendered_ones(both: Path) -> None:
    for sample in read_dataset(both / "heldout")[:4]:
        room = Room(int(sample.scene.split("-")[1]))
        for view, name in zip(sample.views, sample.meta["frames"], strict=True):
            frame = room.frame(int(name.split("-")[-1]))
            assert view.depth_path is not None
            assert np.array_equal(np.asarray(load_image(view.image_path)), frame.rgb)
            np.testing.assert_allclose(load_depth(view.depth_path), frame.depth, atol=0.00051)
            assert view.pose is not None
            np.testing.assert_array_equal(view.pose, frame.pose)
            assert view.image_path.is_absolute()


def test_index_names_files_relative_to_the_folder(both: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    (both / "heldout").rename(moved)
    try:
        assert all(view.image_path.is_file() for sample in read_dataset(moved) for view in sample.views)
    finally:
        moved.rename(both / "heldout")


def test_scenes_keep_their_objects(both: Path) -> None:
    scenes = read_scenes(both / "train")
    up, objects = scenes["room-100002"]
    assert up is not None
    assert [thing.name for thing in objects] == [thing.name for thing in Room(100_002).objects]


def test_copying_samples(both: Path, tmp_path: Path) -> None:
    some = read_dataset(both / "train")[::5]
    write_dataset(tmp_path / "copy", some)
    copies = read_dataset(tmp_path / "copy")
    assert [sample.id for sample in copies] == [sample.id for sample in some]
    for old, new in zip(some, copies, strict=True):
        rows = sample_to_row(old), sample_to_row(new)
        for row in rows:
            for view in row["views"]:
                view["image"] = view["depth"] = ""
        assert rows[0] == rows[1]
        assert new.views[0].image_path.read_bytes() == old.views[0].image_path.read_bytes()


def test_is_dataset(both: Path, tmp_path: Path) -> None:
    assert is_dataset(both)
    assert is_dataset(both / "train")
    assert not is_dataset(tmp_path)


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_dataset(DATA, 5, "heldout", tmp_path / "d", lambda done, total: seen.append((done, total)))
    assert seen == [(k, 12) for k in range(1, 13)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "is not a dataset"),
        ("", "is empty"),
        ("good\n{broken", "line 2 is not a sample"),
        ("good\n{}", "line 2 is not a sample: missing 'id'"),
        ("good\n[1]", "line 2 is not a sample"),
    ],
)
def test_broken_datasets(both: Path, tmp_path: Path, lines: str | None, message: str) -> None:
    if lines is not None:
        good = (both / "train" / "index.jsonl").read_text().splitlines()[0]
        (tmp_path / "index.jsonl").write_text(lines.replace("good", good))
    with pytest.raises(ValueError, match=message) as caught:
        read_dataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_and_double_datasets(both: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; make one with `hatch data build`"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds two datasets, train and heldout; name one"):
        read_dataset(both)


def test_bad_pose_shape_in_the_index(both: Path, tmp_path: Path) -> None:
    row = json.loads((both / "train" / "index.jsonl").read_text().splitlines()[0])
    row["views"][0]["pose"] = [1, 2, 3]
    (tmp_path / "index.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"line 1 is not a sample: a matrix has shape \(3,\), expected \(4, 4\)"):
        read_dataset(tmp_path)


def test_existing_folder_is_not_overwritten(both: Path) -> None:
    for make in (lambda: build_dataset(DATA, 1, "train", both / "train"), lambda: build_splits(DATA, 1, both)):
        with pytest.raises(ValueError, match="exists already; choose another folder"):
            make()


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies() -> None:
        with DatasetWriter(tmp_path / "d") as writer:
            writer.add_view("room", 0, Room(0).frame(0))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        dies()
    assert list(tmp_path.iterdir()) == []

    def fails(*args: object) -> None:
        if args[2] == "heldout":
            raise ValueError("no held-out sample")
        build_dataset(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "build_dataset", fails)
    with pytest.raises(ValueError, match="no held-out sample"):
        build_splits(DATA, 1, tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_no_question_possible_says_why(tmp_path: Path) -> None:
    few = RoomsConfig(train_scenes=1)
    data = DATA.model_copy(update={"min_overlap": 0.998, "max_overlap": 0.999, "rooms": few})
    with pytest.raises(ValueError, match=r"no question could be made for train \(\d+ overlap_too_small"):
        build_dataset(data, 1, "train", tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_what_a_task_cannot_give_is_asked_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatch_ray.data.questions.camera.MIN_DEPTH_M", 100.0)
    data = DATA.model_copy(update={"tasks": ["camera_motion_infer", "view_change_infer"], "samples": 10})
    summary = build_dataset(data, 1, "train", tmp_path / "d")
    assert summary["by_task"] == {"view_change_infer": 10}
    assert summary["short_of_equal_share"] == {"camera_motion_infer": 5}


def test_seeds_of_pretraining_are_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rooms need seed < 100"):
        build_dataset(DATA, 100, "train", tmp_path / "d")
    summary = build_dataset(DATA.model_copy(update={"samples": 6}), 99, "train", tmp_path / "d")
    assert summary["samples"] == 6
