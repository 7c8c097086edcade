"""SPAR rows streamed through `datasets`: flattened tables with pictures, marks, depth and poses."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from hatch_ray.config_sections import DataConfig, SparConfig
from hatch_ray.data.build import build_dataset
from hatch_ray.data.images import load_depth, load_image
from hatch_ray.data.refusals import Refusal
from hatch_ray.data.spar.hub import _picture, open_stream, plain_record
from hatch_ray.data.store import read_dataset
from hatch_ray.geometry.convention import scale_intrinsics
from hatch_ray.sample import Sample
from tests.support.pictures import photo
from tests.support.spar_tree import frames

CHANGE = "move_right:0.3,move_up:0.1,move_forward:0.8,rotate_up:4,rotate_left:9"


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` waits some seconds at the end of a stream, for threads that a test does not have."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)


def png(values: np.ndarray) -> dict[str, bytes]:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue()}


def row(number: int, task: str, answer: str, form: str, views: tuple[int, ...], **fields: Any) -> dict[str, Any]:
    shown = [frames(3)[view] for view in views]
    return {
        "id": f"scene0001_00_{number}",
        "conversations": [{"from": "human", "value": f"Question {number}?"}, {"from": "gpt", "value": answer}],
        "image": [png(frame.rgb) for frame in shown],
        "type": task,
        "format": form,
        "source": "scannet",
        "spar_info": json.dumps(fields),
    }


def posed(entry: dict[str, Any], views: tuple[int, ...]) -> dict[str, Any]:
    """With depth and poses, as SPAR-Bench-RGBD names them."""
    shown = [frames(3)[view] for view in views]
    k = np.eye(4)
    k[:3, :3] = shown[0].depth_intrinsics
    return entry | {
        "depth": [png(np.rint(frame.depth * 1000).astype(np.uint16)) for frame in shown],
        "pose": [frame.pose.reshape(-1).tolist() for frame in shown],
        "intrinsic_color": [k.reshape(-1).tolist()] * len(views),
        "intrinsic_depth": [k.reshape(-1).tolist()] * len(views),
    }


def read(folder: Path, rows: list[dict[str, Any]], convention: str = "", **options: Any) -> list[Sample]:
    (folder / "hub").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(folder / "hub" / "train.parquet")
    data = DataConfig(
        kind="spar", samples=50, heldout_fraction=0.0001, convention=convention,
        spar=SparConfig(hub=str(folder / "hub"), **options),
    )  # fmt: skip
    build_dataset(data, 1, "train", folder / "dataset")
    return read_dataset(folder / "dataset")


def test_rows_of_a_table_with_pictures(tmp_path: Path) -> None:
    marks = {"red_point": [[100, 200]], "blue_point": [[300, 400]], "point_img_idx": [[0, 2]]}
    rows = [
        row(0, "depth_prediction_oc_mv", "1.5", "fill", (0, 1, 2), **marks),
        row(1, "view_change_infer", CHANGE, "fill", (0, 1)),
        row(2, "view_change_infer", "A sentence.", "sentence", (0, 1)),
        row(3, "distance_infer_center_oc", "A", "select", (0,)),
    ]
    samples = {sample.task: sample for sample in read(tmp_path, rows)}
    assert set(samples) == {"depth_prediction_oc_mv", "view_change_infer"}
    sample = samples["depth_prediction_oc_mv"]
    assert [(mark.color, mark.view, mark.xy) for mark in sample.marks] == [
        ("red", 0, (100.0, 200.0)),
        ("blue", 2, (300.0, 400.0)),
    ]
    assert (sample.answer, sample.scene, sample.plans) == ("1.5", "scene0001_00", ())
    for view, frame in zip(sample.views, frames(3), strict=False):
        assert np.array_equal(np.asarray(load_image(view.image_path)), frame.rgb)
    assert sample.views[0].image_path == samples["view_change_infer"].views[0].image_path, "a picture is written once"


def test_depth_and_poses_of_a_table(tmp_path: Path) -> None:
    (sample,) = read(tmp_path, [posed(row(1, "view_change_infer", CHANGE, "fill", (0, 2)), (0, 2))])
    assert len(sample.plans) == 1
    for view, number in zip(sample.views, (0, 2), strict=True):
        assert view.pose is not None and view.depth_path is not None
        np.testing.assert_allclose(view.pose, frames(3)[number].pose)
        np.testing.assert_allclose(load_depth(view.depth_path), frames(3)[number].depth, atol=0.00051)


def test_colour_intrinsics_of_a_picture_of_another_size(tmp_path: Path) -> None:
    """Those of pictures three times as wide, beside depth's own: refused, or scaled as the convention says."""
    entry = posed(row(1, "view_change_infer", CHANGE, "fill", (0, 2)), (0, 2))
    depth_k = np.array(entry["intrinsic_depth"][0]).reshape(4, 4)
    large = depth_k.copy()
    large[:3, :3] = scale_intrinsics(depth_k[:3, :3], 3)
    entry["intrinsic_color"] = [large.reshape(-1).tolist()] * 2
    for folder in ("refused", "scaled"):
        (tmp_path / folder).mkdir()
    with pytest.raises(ValueError, match=r"intrinsics_of_another_grid .*colour of view 0 is 80 x 60"):
        read(tmp_path / "refused", [entry])
    (sample,) = read(tmp_path / "scaled", [entry], convention="intrinsics_to_size")
    for view in sample.views:
        np.testing.assert_allclose(view.intrinsics, depth_k[:3, :3], atol=1e-9)
        np.testing.assert_allclose(view.depth_intrinsics, depth_k[:3, :3], atol=1e-9)


def test_broken_pose_of_a_table(tmp_path: Path) -> None:
    bad = posed(row(1, "view_change_infer", CHANGE, "fill", (0, 2)), (0, 2))
    bad["pose"][1] = [float("nan")] * 16
    with pytest.raises(ValueError, match="1 broken_pose"):
        read(tmp_path, [bad])


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    bad = row(1, "view_change_infer", CHANGE, "fill", (0, 2))
    bad["image"] = [{"bytes": b"no picture"}, {"bytes": b"none"}]
    with pytest.raises(ValueError, match="1 unreadable_image"):
        read(tmp_path, [bad])


def stored(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, format=form, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (stored(Image.fromarray(np.full((60, 80), 40_000, np.uint16))), "image_not_in_colour"),
        (stored(photo(5), "GIF", save_all=True, append_images=[photo(6)]), "image_animated"),
        (stored(Image.new("RGB", (9000, 30))), "image_of_bad_size"),
    ],
)
def test_pictures_that_are_no_photos_cost_their_rows(tmp_path: Path, data: bytes, reason: str) -> None:
    for item in ({"bytes": data}, Image.open(io.BytesIO(data))):
        with pytest.raises(Refusal) as refused:
            _picture(item, "0 of the row")
        assert refused.value.reason == reason
    bad = row(1, "view_change_infer", CHANGE, "fill", (0, 2))
    bad["image"] = [{"bytes": data}, bad["image"][1]]
    with pytest.raises(ValueError, match=f"1 {reason}"):
        read(tmp_path, [bad])


def test_a_photo_stored_turned_is_read_upright() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    wide = photo(3).resize((120, 60))
    data = stored(wide, exif=turned)
    for item in ({"bytes": data}, Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(np.asarray(_picture(item, "")), np.rot90(np.asarray(wide), -1))


def test_scenes_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("scene0001_00\n")
    with pytest.raises(ValueError, match="'rows_of_scenes_left_out': 1"):
        read(tmp_path, [row(1, "view_change_infer", CHANGE, "fill", (0, 1))], leave_out=[tmp_path / "list.txt"])


def test_lost_formats_are_named(tmp_path: Path) -> None:
    entry = row(1, "view_change_infer", CHANGE, "fill", (0, 1))
    del entry["format"]
    with pytest.raises(ValueError, match="no field format or format_type"):
        read(tmp_path, [entry])


def test_benchmark_style_fields() -> None:
    raw = plain_record({"question": "Where?", "answer": "A", "task": "position_matching", "images": [1], "id": "a_1"})
    assert (raw["type"], raw["pictures"], raw["conversations"][1]["value"]) == ("position_matching", [1], "A")


def test_a_hub_out_of_reach_is_one_clear_line() -> None:
    with pytest.raises(
        ValueError, match=r"data\.spar\.hub=nobody/nothing cannot be opened .*give data\.root"
    ) as caught:
        open_stream("nobody/nothing")
    assert "\n" not in str(caught.value)
