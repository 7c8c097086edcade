"""Scenes in published forms: one synthetic scene in each of them reads alike, and as COLMAP's own library has it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hatch_ray.config import make_config
from hatch_ray.data.build import build_dataset
from hatch_ray.data.scenes.forms import FORMS, find_scenes, forms_of, read_scene
from hatch_ray.data.scenes.posed import PosedScene
from hatch_ray.data.store import read_dataset
from hatch_ray.geometry.overlap import PosedDepth, reproject
from tests.support.castle import castle_as_recorded
from tests.support.scene_forms import (
    FLOAT32,
    MODELS,
    WRITERS,
    Synthetic,
    colmap_parameters,
    pixels_of,
    synthetic,
    write_colmap,
    write_transforms,
)

LENS = (-0.2, 0.06, 0.006, -0.004)
WITH_POINTS = ("colmap", "colmap, text", "colmap, sparse", "transforms, model")


@pytest.mark.parametrize("form", WRITERS)
def test_the_same_scene_in_every_form_is_the_same(form: str, tmp_path: Path) -> None:
    stored = synthetic(square=True)
    scene = read_scene(WRITERS[form](stored, tmp_path / "scene"))
    near = 1e-4 if form in FLOAT32 else 1e-6
    assert scene.form == form.partition(",")[0] and len(scene) == len(stored.poses) and not scene.left_out
    np.testing.assert_allclose(scene.poses, stored.poses, atol=near)
    for index, view in enumerate(scene.views):
        frame = scene.frame(index)
        np.testing.assert_allclose(frame.intrinsics, stored.k, atol=near)
        np.testing.assert_allclose(frame.pose, view.pose)
        if view.image.suffix == ".png":
            np.testing.assert_array_equal(frame.rgb, stored.pictures[index])
        else:
            assert np.abs(frame.rgb.astype(int) - stored.pictures[index]).mean() < 3  # JPEG
        if view.depth is None:
            assert not frame.depth.any()
        else:
            read = frame.depth > 0
            assert read.mean() > 0.99 and (form.startswith("co3d") != read.all())
            np.testing.assert_allclose(frame.depth[read], stored.depths[index][read], rtol=1e-3, atol=6e-4)
            np.testing.assert_allclose(frame.depth_intrinsics, stored.k, atol=near)
    assert (scene.landmarks is not None) == (form in WITH_POINTS)
    if form in WITH_POINTS:
        check_landmarks(scene, stored)


def check_landmarks(scene: PosedScene, stored: Synthetic) -> None:
    """Every sighting: the stored point, where a pinhole camera has it; bent by the lens, the stored keypoint."""
    marks = scene.landmarks
    assert marks is not None
    stored_of = [int(np.argmin(np.linalg.norm(stored.points - point, axis=-1))) for point in marks.points]
    np.testing.assert_allclose(marks.points, stored.points[stored_of], atol=1e-9)
    assert marks.error == pytest.approx(0.25)
    assert sorted(marks.track_length) == sorted(stored.seen.sum(axis=0)[stored.seen.any(axis=0)])
    for index, view in enumerate(scene.views):
        points, pixels = marks.seen_by(index)
        assert {stored_of[point] for point in points} == set(np.flatnonzero(stored.seen[index]))
        np.testing.assert_allclose(pixels, view.lens.project(marks.points[points], view.pose), atol=1e-6)
        keypoints = stored.keypoints(index)[[stored_of[point] for point in points]]
        np.testing.assert_allclose(view.lens.distort(pixels), keypoints, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(WRITERS)))
def test_a_point_projects_to_its_pixel_in_every_form(seed: int, form: str) -> None:
    """The pixels are those of the synthetic scene's own formula, poses and lenses those of the reader."""
    stored = synthetic(seed, views=2, points=12, square=seed % 2 == 0)
    with tempfile.TemporaryDirectory() as folder:
        scene = read_scene(WRITERS[form](stored, Path(folder) / "scene"))
        for index, view in enumerate(scene.views):
            np.testing.assert_allclose(
                view.lens.project(stored.points, view.pose),
                stored.keypoints(index),
                atol=1e-2 if form in FLOAT32 else 1e-6,
            )
        if scene.landmarks is not None:
            check_landmarks(scene, stored)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(MODELS)), st.booleans())
def test_points_of_every_camera_model_lead_back_to_the_stored_pixels(seed: int, model: str, text: bool) -> None:
    used = {"SIMPLE_RADIAL": 1, "RADIAL": 2, "OPENCV": 4}.get(model, 0)
    stored = synthetic(seed, 2, 12, (*LENS[:used], *[0.0] * (4 - used)), square=model not in ("PINHOLE", "OPENCV"))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        scene = read_scene(write_colmap(stored, Path(folder) / "scene", model, text))
        assert [view.lens.distortion for view in scene.views] == [stored.distortion] * 2
        check_landmarks(scene, stored)


def test_a_frame_of_a_bent_picture_is_straight(tmp_path: Path) -> None:
    """Red rises across and green down the straight picture, both by twice the pixel; the stored one is bent."""
    stored = synthetic(3, views=1, distortion=LENS)
    scene = read_scene(write_transforms(stored, tmp_path / "scene"))
    u, v = np.meshgrid(np.arange(64.0), np.arange(48.0))
    at = scene.views[0].lens.undistort(np.stack([u, v], axis=-1))
    plane = ((at - stored.k[:2, 2]) / np.diag(stored.k)[:2]).reshape(-1, 2)
    np.testing.assert_allclose(pixels_of(stored.k, LENS, plane), np.stack([u, v], -1).reshape(-1, 2), atol=1e-6)
    bent = np.clip(np.stack([2 * at[..., 0], 2 * at[..., 1], 0 * u], axis=-1), 0, 255).round().astype(np.uint8)
    Image.fromarray(bent).save(scene.views[0].image)
    assert np.abs(at - np.stack([u, v], axis=-1)).max() > 2  # pixels between bent and straight
    frame, inner = scene.frame(0), np.s_[8:-8, 8:-8]
    for band, truth in ((0, 2 * u), (1, 2 * v)):
        assert np.abs(frame.rgb[..., band] - truth)[inner].max() <= 1
    assert set(np.unique(frame.depth)) <= {*np.unique(np.float32(stored.depths.round(3))), np.float32(0)}


def test_a_point_of_co3d_computed_by_hand(tmp_path: Path) -> None:
    """PyTorch3D: x to the left, so that a point at x = +0.1 lies left of the middle."""
    stored = replace(synthetic(views=1, square=True), k=np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]]))
    turned = np.eye(4)
    turned[:3, :3] = np.diag([-1.0, -1, 1])  # PyTorch3D's R = 1, T = 0
    folder = WRITERS["co3d"](replace(stored, poses=turned[None]), tmp_path / "scene")
    view = read_scene(folder).views[0]
    pixels = view.lens.project(np.array([[0.0, 0, 2], [0.1, 0, 2], [0, 0.1, 2]]), view.pose)
    np.testing.assert_allclose(pixels, [[31.5, 23.5], [28.5, 23.5], [31.5, 20.5]], atol=1e-6)


def test_a_focal_length_may_be_an_angle(tmp_path: Path) -> None:
    """NeRF's own files: camera_angle_x alone, and names without an ending."""
    stored = synthetic(views=2)
    file = write_transforms(stored, tmp_path / "scene") / "transforms.json"
    frames = json.loads(file.read_text())["frames"]
    for frame in frames:
        frame["file_path"] = frame["file_path"].removesuffix(".png")
    file.write_text(json.dumps({"camera_angle_x": np.pi / 2, "frames": frames}))
    lens = read_scene(file.parent).views[1].lens
    np.testing.assert_allclose(lens.k, [[32, 0, 31.5], [0, 32, 23.5], [0, 0, 1]])


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_picture_that_exif_turns_lies_as_its_lens_does(orientation: int, tmp_path: Path) -> None:
    stored = synthetic(views=1)
    scene = read_scene(write_transforms(stored, tmp_path / "scene"))
    exif = Image.Exif()
    exif[274] = orientation
    back = Image.Transpose.ROTATE_90 if orientation == 6 else Image.Transpose.ROTATE_270
    file = scene.views[0].image
    for picture in (Image.fromarray(stored.pictures[0]).transpose(back), Image.fromarray(stored.pictures[0])):
        picture.save(file, exif=exif)
        np.testing.assert_array_equal(read_scene(tmp_path / "scene").frame(0).rgb, stored.pictures[0])


def test_scenes_below_a_folder_are_found(tmp_path: Path) -> None:
    folders = {name: WRITERS[name](synthetic(views=2, square=True), tmp_path / name) for name in WRITERS}
    assert set(find_scenes(tmp_path)) == set(folders.values())
    assert {name for folder in folders.values() for name in forms_of(folder)} == FORMS.keys()
    wrapped = write_transforms(synthetic(), tmp_path / "0a1b" / "nerfstudio", model=True)
    deep = folders["colmap, text"] / "sparse" / "0"
    assert [read_scene(folder).id for folder in (wrapped, folders["sens"], deep)] == [
        "0a1b",
        "scene0000_00",
        "colmap, text",
    ]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("text", [False, True])
def test_as_pycolmap_reads_it(model: str, text: bool, tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed: no second reader to compare with")
    used = {"SIMPLE_RADIAL": 1, "RADIAL": 2, "OPENCV": 4}.get(model, 0)
    stored = synthetic(5, distortion=(*LENS[:used], *[0.0] * (4 - used)), square=model not in ("PINHOLE", "OPENCV"))  # type: ignore[arg-type]
    root = write_colmap(stored, tmp_path / "ours", model, text)
    theirs = pycolmap.Reconstruction(str(root / "sparse" / "0"))
    again = tmp_path / "theirs" / "sparse" / "0"
    again.mkdir(parents=True)
    (theirs.write_text if text else theirs.write_binary)(str(again))
    (tmp_path / "theirs" / "images").symlink_to(root / "images")
    camera = next(iter(theirs.cameras.values()))
    np.testing.assert_allclose(camera.params, colmap_parameters(stored, model))
    by_name = {image.name: image for image in theirs.images.values()}
    for scene in (read_scene(root), read_scene(tmp_path / "theirs")):
        assert len(scene) == theirs.num_images() and scene.landmarks is not None
        check_landmarks(scene, stored)
        assert len(scene.landmarks.points) == theirs.num_points3D()
        for index, view in enumerate(scene.views):
            image = by_name[view.name]
            np.testing.assert_allclose(np.linalg.inv(view.pose)[:3], image.cam_from_world().matrix(), atol=1e-9)
            points, pixels = scene.landmarks.seen_by(index)
            assert len(points) == image.num_points3D
            for point, pixel in zip(scene.landmarks.points[points], view.lens.distort(pixels), strict=True):
                np.testing.assert_allclose(image.project_point(point), pixel + 0.5, atol=1e-6)


@pytest.fixture(scope="session")
def castle(repository: Path) -> Path:
    """40 posed views of one object: ../shared/orbit/castle."""
    folder = repository.parent / "shared" / "orbit" / "castle"
    if not (folder / "README.md").is_file():
        pytest.skip(f"no posed views of one object at {folder}")
    return folder


def test_castle(castle: Path, tmp_path: Path) -> None:
    scene = read_scene(castle_as_recorded(castle, tmp_path / "castle"))
    assert (scene.form, len(scene), scene.left_out) == ("recorded", 40, ())
    first, other = scene.frame(1), scene.frame(20)
    assert first.rgb.shape == (480, 640, 3)
    moved = reproject(*(PosedDepth(frame.depth, frame.intrinsics, frame.pose) for frame in (first, other)), stride=1)
    seen = other.depth[
        np.rint(moved.v_in[moved.consistent]).astype(int), np.rint(moved.u_in[moved.consistent]).astype(int)
    ]
    assert moved.consistent.mean() > 0.5 and np.median(np.abs(seen - moved.depth_in[moved.consistent])[seen > 0]) < 1e-3
    ahead, places = scene.poses[:, :3, 2], scene.poses[:, :3, 3]
    across = np.eye(3) - ahead[:, :, None] * ahead[:, None]
    meet = np.linalg.solve(across.sum(0), (across @ places[..., None]).sum(0)[:, 0])
    apart = np.linalg.norm(across @ (places - meet)[..., None], axis=1)
    assert apart.max() < 0.2 * np.linalg.norm(places - meet, axis=-1).min()  # all look at one place


def test_hatch_asks_about_cameras_where_a_scene_has_landmarks_and_no_depth(tmp_path: Path) -> None:
    """Overlap is that of landmarks, lengths are metres by data.convention, and only cameras are asked about."""
    stored = synthetic(6, views=8, square=True)
    write_colmap(stored, tmp_path / "scene")
    words = {"kind": "scenes", "root": str(tmp_path / "scene"), "samples": 24, "convention": "translation*2"}
    summary = build_dataset(make_config({"data": words}).data, 0, "train", tmp_path / "train")
    samples = read_dataset(tmp_path / "train")
    assert {one.task for one in samples} <= {"view_change_infer", "camera_motion_infer"} and len(samples) == 10
    assert summary["refused_views_by_reason"]["scene_has_no_depth"] > 0
    for one in samples:
        i, j = (int(name[6:11]) - 1 for name in one.meta["frames"])
        both = (stored.seen[i] & stored.seen[j]).sum()
        omega = (both / stored.seen[i].sum() + both / stored.seen[j].sum()) / 2
        assert one.meta["overlaps"] == [pytest.approx(omega, abs=1e-3)]
        if one.task == "view_change_infer":
            far = 2 * np.linalg.norm(stored.poses[i, :3, 3] - stored.poses[j, :3, 3])
            assert np.linalg.norm([one.meta["gold"][name] for name in ("right", "up", "forward")]) == pytest.approx(far)
    with pytest.raises(ValueError, match=r"of kind scenes translation\*FACTOR alone is read"):
        build_dataset(make_config({"data": words | {"convention": "opengl"}}).data, 0, "train", tmp_path / "no")
    with pytest.raises(ValueError, match="holds no scene in a form that is read"):
        build_dataset(
            make_config({"data": words | {"root": str(tmp_path / "train")}}).data, 0, "train", tmp_path / "no"
        )
