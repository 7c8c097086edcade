"""Datasets on disk: the same from the same seed, whole or absent, and clear words when something is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hatch_ray.config_sections import DataConfig, RoomsConfig
from hatch_ray.data.build import Split, build_dataset, write_splits
from hatch_ray.data.check import check_root
from hatch_ray.data.images import load_depth, load_image
from hatch_ray.data.rooms import Room
from hatch_ray.data.store import is_dataset, read_dataset, read_scenes
from hatch_ray.data.writer import DatasetWriter, sample_to_row
from tests.support.datasets import build_splits, write_dataset

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
        ("good\n{broken", "line 2 is no JSON"),
        ("good\n{}", "line 2: id: Field required; line 2: scene: Field required"),
        ("good\n[1]", r"line 2: .*valid dictionary"),
    ],
)
def test_broken_datasets(both: Path, tmp_path: Path, lines: str | None, message: str) -> None:
    if lines is not None:
        good = (both / "train" / "index.jsonl").read_text().splitlines()[0]
        (tmp_path / "index.jsonl").write_text(lines.replace("good", good))
        for part in ("images", "depth"):
            (tmp_path / part).symlink_to(both / "train" / part)
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
    with pytest.raises(ValueError, match=r"line 1: views\.0\.pose.*got"):
        read_dataset(tmp_path)


def test_existing_folder_is_not_overwritten(both: Path) -> None:
    for make in (lambda: build_dataset(DATA, 1, "train", both / "train"), lambda: build_splits(DATA, 1, both)):
        with pytest.raises(ValueError, match="exists already; choose another folder"):
            make()


def test_nothing_half_written(tmp_path: Path) -> None:
    def dies() -> None:
        with DatasetWriter(tmp_path / "d") as writer:
            writer.add_view("room", 0, Room(0).frame(0))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        dies()
    assert list(tmp_path.iterdir()) == []

    def fails(section: str, split: Split, folder: Path) -> None:
        if split == "heldout":
            raise ValueError("no held-out sample")
        build_dataset(DATA, 1, split, folder)

    with pytest.raises(ValueError, match="no held-out sample"):
        write_splits(fails, {"data": ""}, tmp_path / "d")
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


def changed(both: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the training dataset whose third row was changed by hand."""
    out = tmp_path / "changed"
    shutil.copytree(both / "train", out)
    lines = (out / "index.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[2])
    change(row)
    lines[2] = json.dumps(row)
    (out / "index.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return out


BY_HAND: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a number for text": (lambda row: row.update(answer=3), r"line 3: answer: .*string, got 3"),
    "null": (lambda row: row.update(answer=None), r"line 3: answer: .*string, got None"),
    "no plans": (lambda row: row.update(plans=[]), r"line 3: plans are for the pairs \[\], the views need \[\(0, 1"),
    "a far step": (
        lambda row: row["plans"][0].update(atoms=[["move_forward_m", 25.0]]),
        r"line 3: plans\.0\.atoms: move_forward_m must lie in 0 to 20, got 25",
    ),
    "nan": (
        lambda row: row["views"][0]["pose"][0].__setitem__(3, float("nan")),
        r"line 3: views\.0\.pose\.0\.3: Input should be a finite number, got nan",
    ),
    "no rotation": (lambda row: row["views"][0]["pose"][0].__setitem__(0, 9), r"line 3: views\.0\.pose: .*rotation"),
    "meta": (lambda row: row.update(meta="none"), r"line 3: meta: .*dictionary, got 'none'"),
    "no id": (lambda row: row.pop("id"), r"line 3: id: Field required"),
    "an answer that none can meet": (
        lambda row: row.update(answer="perhaps", answer_form="number"),
        r"line 3: answer 'perhaps' is not 1 number",
    ),
    "a lost picture": (
        lambda row: row["views"][0].update(image="images/a/0.png"),
        r"line 3: views\.0\.image: images/a/0",
    ),
    "a mark elsewhere": (
        lambda row: row.update(marks=[{"view": 7, "color": "red", "xy": [1, 2]}]),
        r"line 3: marks name view 7 of",
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_rows_made_by_hand_are_told_with_line_field_and_value(both: Path, tmp_path: Path, name: str) -> None:
    change, said = BY_HAND[name]
    out = changed(both, tmp_path, change)
    with pytest.raises(ValueError, match=said) as refused:
        read_dataset(out)
    assert str(out / "index.jsonl") in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=said):
        check_root(out, "", print)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_told(both: Path, tmp_path: Path, encoding: str) -> None:
    out = changed(both, tmp_path, lambda row: None)
    text = (out / "index.jsonl").read_text(encoding="utf-8").replace("?", "\u00e9?", 1)
    (out / "index.jsonl").write_text(text, encoding=encoding)
    with pytest.raises(ValueError, match=r"index\.jsonl is not UTF-8"):
        read_dataset(out)


def test_the_first_ten_faults_are_named(both: Path, tmp_path: Path) -> None:
    out = tmp_path / "changed"
    shutil.copytree(both / "train", out)
    rows = [json.loads(line) for line in (out / "index.jsonl").read_text(encoding="utf-8").splitlines()]
    (out / "index.jsonl").write_text("".join(json.dumps(row | {"answer": 3}) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ValueError, match=f"; and {len(rows) - 10} more; fix them") as refused:
        read_dataset(out)
    assert str(refused.value).count("answer: ") == 10


def test_a_sound_dataset_is_said_to_be_so(both: Path) -> None:
    lines: list[str] = []
    check_root(both, "", lines.append)
    assert [line.rpartition(": ")[2] for line in lines] == [
        f"{len(read_dataset(both / split))} samples, all well-formed" for split in ("train", "heldout")
    ]
