"""What is wrong with a scene's files is one line: what, where, what to do; a bad frame is left out and counted."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hatch_ray.data.scenes.forms import FORMS, read_scene
from hatch_ray.data.scenes.posed import PosedScene
from tests.support.scene_forms import (
    WRITERS,
    synthetic,
    write_co3d,
    write_colmap,
    write_realestate,
    write_sens,
    write_transforms,
)


def written(form: str, root: Path) -> Path:
    return WRITERS[form](synthetic(square=True), root / "scene")


def edit(file: Path, old: str, new: str, count: int = 1) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, count))


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    stored = json.loads(file.read_text())
    change(stored)
    file.write_text(json.dumps(stored))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["cameras.bin", "images.bin", "points3D.bin", "scene0000_00.sens"]),
    st.floats(0, 1, exclude_max=True),
)
def test_a_cut_file_is_named_with_its_last_byte(name: str, share: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scene = written("sens" if name.endswith(".sens") else "colmap", Path(folder))
        (file,) = scene.rglob(name)
        length = int(share * file.stat().st_size)
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(
            ValueError, match=rf"{name} is cut: it ends at byte {length}, .* needs \d+ bytes from byte \d+ on"
        ):
            read_scene(scene)


def test_a_count_that_no_file_could_hold_ends_at_once(tmp_path: Path) -> None:
    scene = written("colmap", tmp_path)
    file = scene / "sparse" / "0" / "points3D.bin"
    file.write_bytes(struct.pack("<Q", 2**60) + file.read_bytes()[8:])
    with pytest.raises(ValueError, match=r"points3D\.bin is cut"):
        read_scene(scene)


@pytest.mark.parametrize("text", [False, True])
def test_a_camera_model_that_is_not_read(text: bool, tmp_path: Path) -> None:
    scene = write_colmap(synthetic(), tmp_path / "scene", text=text)
    file = scene / "sparse" / "0" / ("cameras.txt" if text else "cameras.bin")
    if text:
        edit(file, " OPENCV ", " OPENCV_FISHEYE ")
    else:
        data = bytearray(file.read_bytes())
        data[12:16] = struct.pack("<i", 5)
        file.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"cameras\.\w+: camera 5 has model OPENCV_FISHEYE; read are .*image_undistorter"
    ):
        read_scene(scene)


TRANSFORMS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no intrinsics": (lambda stored: stored.pop("fl_x"), r"has no intrinsics for images/frame_00001\.png; give fl_x"),
    "a lens": (lambda stored: stored.update(camera_model="OPENCV_FISHEYE"), "camera_model OPENCV_FISHEYE is not read"),
    "more of a lens": (lambda stored: stored.update(k3=0.1), "distortion k3 is not read; undistort"),
    "folded": (lambda stored: stored.update(k1=-2), "a distortion that folds the picture"),
    "center": (lambda stored: stored.update(cx=900), "principal point outside its picture"),
    "focal": (lambda stored: stored.update(fl_x=0), "focal lengths above 0"),
    "frames": (lambda stored: stored.pop("frames"), r"is no transforms\.json \(KeyError: 'frames'\)"),
    "shape": (lambda stored: stored["frames"][0].update(transform_matrix=[1, 2]), r"has shape \(2,\)"),
    "empty": (lambda stored: stored.update(frames=[]), "none of its 0 frames"),
}


@pytest.mark.parametrize("fault", TRANSFORMS)
def test_a_transforms_json_that_is_none(fault: str, tmp_path: Path) -> None:
    change, message = TRANSFORMS[fault]
    scene = written("transforms", tmp_path)
    edit_json(scene / "transforms.json", change)
    with pytest.raises(ValueError, match=f"scene.*{message}"):
        read_scene(scene)


def test_files_that_are_not_what_they_are_called(tmp_path: Path) -> None:
    (file,) = written("transforms", tmp_path / "json").glob("transforms.json")
    file.write_text("frames")
    with pytest.raises(ValueError, match=r"transforms\.json is no transforms\.json"):
        read_scene(file.parent)
    sequence = written("co3d", tmp_path / "co3d")
    (sequence.parent / "frame_annotations.jgz").write_bytes(b"plain")
    with pytest.raises(ValueError, match=r"frame_annotations\.jgz is no gzipped list of frames"):
        read_scene(sequence)
    clip = written("realestate", tmp_path / "clip")
    edit(clip.parent / f"{clip.name}.txt", " 0.0 0.0 ", " 0.0 ")
    with pytest.raises(ValueError, match=r"0000cc6d8b108390\.txt line 2 is not 19 numbers"):
        read_scene(clip)
    model = written("colmap, text", tmp_path / "text")
    edit(model / "sparse" / "0" / "points3D.txt", " 1 2 3 0.25 ", " 1 2 3 ")
    edit(model / "sparse" / "0" / "points3D.txt", " 1 2 3 0.25 ", " 1 2 x ")
    with pytest.raises(ValueError, match=r"points3D\.txt line 3: .*'x'"):
        read_scene(model)


def test_what_a_model_lacks(tmp_path: Path) -> None:
    scene = written("colmap", tmp_path)
    (scene / "sparse" / "0" / "images.bin").unlink()
    (scene / "sparse" / "0" / "points3D.bin").unlink()
    with pytest.raises(ValueError, match=r"has no images\.bin or images\.txt, no points3D\.bin or points3D\.txt; copy"):
        read_scene(scene)


def test_a_model_without_points_has_no_landmarks(tmp_path: Path) -> None:
    scene = written("colmap, text", tmp_path)
    (scene / "sparse" / "0" / "points3D.txt").write_text("")
    read = read_scene(scene)
    assert len(read) == 4 and read.landmarks is None


def test_points_of_another_model_are_refused(tmp_path: Path) -> None:
    scene, other = written("colmap", tmp_path / "a"), write_colmap(synthetic(9, square=True), tmp_path / "b")
    shutil.copy(other / "sparse" / "0" / "points3D.bin", scene / "sparse" / "0")
    with pytest.raises(ValueError, match=r"its points project .* picture widths beside the pixels that see them"):
        read_scene(scene)


def test_a_model_of_another_capture_below_transforms_is_refused(tmp_path: Path) -> None:
    scene = written("transforms, model", tmp_path)
    edit_json(scene / "transforms.json", lambda stored: stored["frames"][0].update(colmap_im_id=77))
    with pytest.raises(ValueError, match=r"names COLMAP's image 77, which .* lacks"):
        read_scene(scene)


def left_out(scene: PosedScene) -> Counter[str]:
    """How many frames by reason."""
    return Counter(refusal.reason for refusal in scene.left_out)


@pytest.mark.parametrize("form", [name for name in WRITERS if name != "sens"])
def test_missing_pictures_are_counted_and_the_rest_goes_on(form: str, tmp_path: Path) -> None:
    scene = written(form, tmp_path)
    names = [view.image for view in read_scene(scene).views]
    names[1].unlink()
    turned = int(form != "realestate")  # whose lenses have no size of their own
    if turned:
        Image.new("RGB", (48, 64)).save(names[2])
    read = read_scene(scene)
    assert [view.image for view in read.views] == [name for name in names if name not in names[1 : 2 + turned]]
    reasons = left_out(read)
    assert len(read) == 3 - turned and reasons["missing image"] == 1
    assert any(names[1].name in str(refusal) for refusal in read.left_out)
    if read.landmarks is not None:
        assert set(read.landmarks.view) == {0, 1}
    assert reasons["intrinsics of another grid"] == turned
    for name in (names[0], names[2], names[3]):
        name.unlink()
    with pytest.raises(ValueError, match="none of its 4 frames can be used; the first: missing image"):
        read_scene(scene)


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("fault", ["infinite", "no rotation"])
def test_a_frame_with_a_broken_pose_is_left_out(form: str, fault: str, tmp_path: Path) -> None:
    stored = synthetic(square=True)
    good = read_scene(WRITERS[form](stored, tmp_path / "good"))
    scene = WRITERS[form](stored, tmp_path / "bad")
    spoil(scene, form.partition(",")[0], -np.inf if fault == "infinite" else 7.0)
    read = read_scene(scene)
    assert left_out(read) == {"broken pose": 1}
    np.testing.assert_array_equal(read.poses, good.poses[1:])


def spoil(scene: Path, form: str, value: float) -> None:
    """One number of the first pose's rotation."""
    if form == "colmap":
        for file in scene.rglob("images.bin"):
            data = bytearray(file.read_bytes())
            data[12:20] = struct.pack("<d", value)
            file.write_bytes(data)
        for file in scene.rglob("images.txt"):
            words = file.read_text().split(" ")
            first = next(index for index, word in enumerate(words) if word.endswith("\n1"))
            file.write_text(" ".join([*words[: first + 1], str(value), *words[first + 2 :]]))
    elif form == "transforms":
        edit_json(
            scene / "transforms.json", lambda stored: stored["frames"][0]["transform_matrix"][0].__setitem__(0, value)
        )
    elif form == "co3d":
        file = scene.parent / "frame_annotations.jgz"
        frames = json.loads(gzip.decompress(file.read_bytes()))
        frames[1]["viewpoint"]["R"][0][0] = value
        file.write_bytes(gzip.compress(json.dumps(frames).encode()))
    elif form == "realestate":
        file = scene.parent / f"{scene.name}.txt"
        words = file.read_text().split(" ")
        file.write_text(" ".join([*words[:7], str(value), *words[8:]]))
    elif form == "sens":
        (file,) = scene.glob("*.sens")
        data = bytearray(file.read_bytes())
        start = 4 + 8 + 7 + 4 * 64 + 8 + 16 + 4 + 8
        data[start : start + 4] = struct.pack("<f", value)
        file.write_bytes(data)
    else:
        file = scene / "frame-000000.pose.txt"
        file.write_text(" ".join([str(value), *file.read_text().split()[1:]]))


def test_frames_of_co3d_without_a_viewpoint_or_with_other_intrinsics(tmp_path: Path) -> None:
    sequence = write_co3d(synthetic(), tmp_path / "a")
    file = sequence.parent / "frame_annotations.jgz"
    frames = json.loads(gzip.decompress(file.read_bytes()))
    frames[2]["viewpoint"] = None
    file.write_bytes(gzip.compress(json.dumps(frames).encode()))
    assert left_out(read_scene(sequence)) == {"missing pose": 1}
    frames[3]["viewpoint"]["intrinsics_format"] = "pixels"
    file.write_bytes(gzip.compress(json.dumps(frames).encode() + b" "))
    with pytest.raises(ValueError, match=r"frame_annotations\.jgz: frame 2 .* has intrinsics_format pixels; read are"):
        read_scene(sequence)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(0, 3, "has version 3; read is 4"), (275, 0, "colour compression 0"), (279, 2, "depth compression 2")],
)
def test_another_kind_of_sens_file(at: int, value: int, message: str, tmp_path: Path) -> None:
    scene = write_sens(synthetic(), tmp_path)
    (file,) = scene.glob("*.sens")
    data = bytearray(file.read_bytes())
    data[at : at + 4] = struct.pack("<i", value)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"scene0000_00\.sens.*{message}"):
        read_scene(scene)


def test_a_frame_whose_bytes_are_broken_is_told_when_it_is_read(tmp_path: Path) -> None:
    scene = write_sens(synthetic(), tmp_path)
    (file,) = scene.glob("*.sens")
    file.write_bytes(file.read_bytes()[:-40] + b"\0" * 40)
    with pytest.raises(ValueError, match=r"unreadable depth: depth of .*\.sens frame 3 cannot be read"):
        read_scene(scene).frame(3)


def test_a_folder_in_no_form_or_in_two(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is in no known form; a scene is one folder with") as error:
        read_scene(tmp_path)
    assert all(f"{name}: " in str(error.value) for name in FORMS)
    scene = write_colmap(synthetic(), tmp_path / "both")
    write_transforms(synthetic(), scene)
    with pytest.raises(ValueError, match=r"both is in 2 forms, colmap and transforms; say which: form=colmap"):
        read_scene(scene)
    assert [read_scene(scene, form).form for form in ("colmap", "transforms")] == ["colmap", "transforms"]
    with pytest.raises(ValueError, match=r"is not in the form sens: one \.sens file"):
        read_scene(scene, "sens")
    with pytest.raises(ValueError, match="not known; known are colmap, transforms"):
        read_scene(scene, "kitti")
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        read_scene(tmp_path / "nowhere")


def test_a_clip_without_its_frames(tmp_path: Path) -> None:
    clip = write_realestate(synthetic(), tmp_path)
    for file in clip.iterdir():
        file.unlink()
    with pytest.raises(
        ValueError, match=r"none of its 4 frames can be used; the first: missing image: .*52553000\.png"
    ):
        read_scene(clip)
