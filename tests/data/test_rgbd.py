"""Posed RGB-D folders: both forms, every fault of a frame, the split by time, and real frames."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hatch_ray.config_sections import DataConfig
from hatch_ray.data.build import build_dataset
from hatch_ray.data.images import load_depth, save_depth
from hatch_ray.data.rgbd import read_sequences, time_split
from hatch_ray.data.rgbd_frames import FrameFiles, RgbdScene, load_frame, on_the_photo
from hatch_ray.data.rooms import Room, RoomOptions
from hatch_ray.data.scene import Frame
from hatch_ray.data.store import read_dataset
from hatch_ray.data.visibility import back_project, project, to_camera, to_thousand
from hatch_ray.geometry.convention import scale_intrinsics
from hatch_ray.geometry.overlap import PosedDepth, view_overlap
from hatch_ray.sample import Sample

N = 8


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    room = Room(7, RoomOptions(width=160, height=120, n_views=N))
    return [room.frame(index) for index in range(N)]


@pytest.fixture
def seven_scenes(frames: list[Frame], tmp_path: Path) -> Path:
    """frame-XXXXXX.{color.jpg,depth.png,pose.txt} with intrinsics and gravity, as in the real folder."""
    root = tmp_path / "kitchen"
    root.mkdir()
    for number, frame in enumerate(frames):
        stem = root / f"frame-{number * 5:06d}"
        Image.fromarray(frame.rgb).save(f"{stem}.color.jpg", quality=95)
        save_depth(Path(f"{stem}.depth.png"), frame.depth)
        np.savetxt(f"{stem}.pose.txt", frame.pose)
    np.savetxt(root / "camera-intrinsics.txt", frames[0].depth_intrinsics)
    np.savetxt(root / "gravity-direction.txt", [0, 0, -1])
    return root


@pytest.fixture
def scannet(frames: list[Frame], tmp_path: Path) -> Path:
    """color/, depth/, pose/, intrinsic/ below scene folders, colour twice the size of depth."""
    root = tmp_path / "scans" / "scene0000_00"
    for part in ("color", "depth", "pose", "intrinsic"):
        (root / part).mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame.rgb).resize((320, 240)).save(root / "color" / f"{number}.jpg")
        save_depth(root / "depth" / f"{number}.png", frame.depth)
        np.savetxt(root / "pose" / f"{number}.txt", frame.pose)
    for grid, k in (("color", scale_intrinsics(frames[0].intrinsics, 2, 2)), ("depth", frames[0].depth_intrinsics)):
        matrix = np.eye(4)
        matrix[:3, :3] = k
        np.savetxt(root / "intrinsic" / f"intrinsic_{grid}.txt", matrix)
    return root.parent


def config(root: Path, **options: object) -> DataConfig:
    return DataConfig(kind="rgbd", root=root, heldout_fraction=0.25, gap_fraction=0.0, **options)  # type: ignore[arg-type]


def only(root: Path, split: str = "train", **options: object) -> RgbdScene:
    (scene,) = read_sequences(config(root, **options)).split(split)
    return scene


def test_seven_scenes_form(seven_scenes: Path, frames: list[Frame]) -> None:
    scene = only(seven_scenes)
    assert (scene.id, len(scene), scene.objects) == ("kitchen-train", 6, ())
    assert scene.up is not None
    np.testing.assert_allclose(scene.up, [0, 0, 1])
    for index in range(len(scene)):
        frame = scene.frame(index)
        np.testing.assert_allclose(frame.depth, frames[index].depth, atol=0.00051)
        np.testing.assert_allclose(frame.pose, frames[index].pose)
        np.testing.assert_allclose(frame.intrinsics, frames[index].intrinsics)
        assert np.abs(frame.rgb.astype(int) - frames[index].rgb).mean() < 12
    assert scene.frame(3) is scene.frame(3)


def test_sequence_folders_and_png_colour(seven_scenes: Path, tmp_path: Path) -> None:
    root = tmp_path / "7scenes"
    for name in ("seq-01", "seq-02"):
        shutil.copytree(seven_scenes, root / name, ignore=shutil.ignore_patterns("camera-*", "gravity-*"))
    for jpg in (root / "seq-02").glob("*.color.jpg"):
        Image.open(jpg).save(jpg.with_suffix(".png"))
        jpg.unlink()
    shutil.copy(seven_scenes / "camera-intrinsics.txt", root)
    scenes = read_sequences(config(root)).split("train")
    assert [scene.id for scene in scenes] == ["seq-01-train", "seq-02-train"]
    assert [scene.up for scene in scenes] == [None, None]
    assert [len(scene) for scene in scenes] == [6, 6]


def test_scannet_form(scannet: Path, frames: list[Frame]) -> None:
    scene = only(scannet)
    assert (scene.id, len(scene)) == ("scene0000_00-train", 6)
    assert scene.up is not None
    assert scene.up.tolist() == [0, 0, 1]
    frame = scene.frame(2)
    assert frame.rgb.shape == (240, 320, 3)
    assert frame.depth.shape == (120, 160)
    np.testing.assert_allclose(frame.intrinsics, scale_intrinsics(frames[2].intrinsics, 2, 2))
    np.testing.assert_allclose(frame.depth_intrinsics, frames[2].depth_intrinsics)


def test_scannet_frames_are_in_order_of_time(scannet: Path) -> None:
    scene_folder = scannet / "scene0000_00"
    for part, ending in (("color", "jpg"), ("depth", "png"), ("pose", "txt")):
        (scene_folder / part / f"0.{ending}").rename(scene_folder / part / f"10.{ending}")
    recording = read_sequences(config(scannet)).recordings[0]
    assert [frame.name for frame in recording.frames] == ["1", "2", "3", "4", "5", "6", "7", "10"]


def write_pose(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "frame-000000.pose.txt").write_text(text)


def edit_depth(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    def edit(root: Path) -> None:
        path = root / "frame-000000.depth.png"
        save_depth(path, change(load_depth(path)))

    return edit


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "nan": (write_pose("nan " * 4 + "\n" + "0 0 0 1\n" * 3), "broken pose", "NaN or infinity"),
    "minus infinity": (write_pose("-inf -inf -inf -inf\n" * 4), "broken pose", "NaN or infinity"),
    "not a rotation": (write_pose("2 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"), "broken pose", "not a rotation"),
    "mirror": (write_pose("-1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"), "broken pose", "not a rotation"),
    "two rows": (write_pose("1 0 0 0\n0 1 0 0\n"), "broken pose", "expected 4x4"),
    "words": (write_pose("lost\n"), "broken pose", "not a table of numbers"),
    "empty pose": (write_pose(""), "broken pose", "the file is empty"),
    "no pose": (lambda root: (root / "frame-000000.pose.txt").unlink(), "missing pose", "does not exist"),
    "no depth": (lambda root: (root / "frame-000000.depth.png").unlink(), "missing depth", "does not exist"),
    "cut depth": (
        lambda root: (root / "frame-000000.depth.png").write_bytes(b"\x89PNG\r\n\x1a\n123"),
        "unreadable depth",
        "cannot be decoded",
    ),
    "8-bit depth": (
        lambda root: Image.new("L", (160, 120), 9).save(root / "frame-000000.depth.png"),
        "unreadable depth",
        "16-bit",
    ),
    "blind": (edit_depth(lambda depth: depth * 0), "no valid depth", "readings in 0 of 19200"),
    "far": (edit_depth(lambda depth: np.where(depth > 0, 65.535, 0)), "no valid depth", "readings in 0"),
    "centimetres": (edit_depth(lambda depth: depth / 10 * 0.9), "implausible depth units", "median depth of 0."),
    "tenfold": (edit_depth(lambda depth: depth * 10), "implausible depth units", "must be millimetres"),
    "no colour": (lambda root: (root / "frame-000000.color.jpg").unlink(), "missing colour", "does not exist"),
    "cut colour": (
        lambda root: (root / "frame-000000.color.jpg").write_bytes(
            (root / "frame-000000.color.jpg").read_bytes()[:800]
        ),
        "unreadable colour",
        "cannot be decoded",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_frames_are_left_out_with_file_and_reason(seven_scenes: Path, fault: str) -> None:
    spoil, reason, detail = FAULTS[fault]
    spoil(seven_scenes)
    recordings = read_sequences(config(seven_scenes))
    (scene,) = recordings.split("train")
    assert len(scene) == 5
    assert scene.frame(0).name == "frame-000005"
    assert recordings.summary["frames_left_out"] == {reason: 1}
    assert (recordings.summary["frames_in_split"], recordings.summary["frames_used"]) == (6, 5)
    (example,) = recordings.summary["examples_left_out"]
    assert "frame-000000" in example
    assert detail in example
    assert "\n" not in example


def test_scannet_lost_poses_are_left_out(scannet: Path) -> None:
    (scannet / "scene0000_00" / "pose" / "1.txt").write_text("-inf -inf -inf -inf\n" * 4)
    recordings = read_sequences(config(scannet))
    assert len(recordings.split("train")[0]) == 5
    assert recordings.summary["frames_left_out"] == {"broken pose": 1}


def test_no_usable_frame_is_an_error(seven_scenes: Path, tmp_path: Path) -> None:
    for path in seven_scenes.glob("*.depth.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 6 train frames .* can be used\. The first: unreadable depth"):
        build_dataset(config(seven_scenes), 0, "train", tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "camera-intrinsics.txt").unlink(), "no camera-intrinsics.txt; write one with the 3x3"),
        (lambda root: (root / "camera-intrinsics.txt").write_text("1 2\n"), "intrinsics .* expected 3x3 or 4x4"),
        (lambda root: (root / "camera-intrinsics.txt").write_text("0 0 1\n0 0 1\n0 0 1\n"), "positive focal lengths"),
        (lambda root: (root / "gravity-direction.txt").write_text("0\n0\n0\n"), "gravity .* is not a direction"),
        (lambda root: (root / "gravity-direction.txt").write_text("down\n"), "gravity .* not a table"),
        (lambda root: [path.unlink() for path in root.glob("frame-*")], "holds no posed RGB-D frames; expected frame-"),
        (shutil.rmtree, "is not a folder"),
    ],
)
def test_broken_folders(seven_scenes: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(seven_scenes)
    with pytest.raises(ValueError, match=message) as caught:
        read_sequences(config(seven_scenes))
    assert "\n" not in str(caught.value)


def test_scannet_without_intrinsics(scannet: Path) -> None:
    (scannet / "scene0000_00" / "intrinsic" / "intrinsic_depth.txt").unlink()
    with pytest.raises(ValueError, match=r"no intrinsic/intrinsic_depth\.txt"):
        read_sequences(config(scannet))


@pytest.mark.parametrize(("heldout", "gap", "step"), [(0.25, 0.02, 1), (0.5, 0.1, 3), (0.1, 0.0, 2), (0.9, 0.5, 1)])
def test_split_by_time(heldout: float, gap: float, step: int) -> None:
    every = tuple(FrameFiles(f"{k:03d}", Path(), Path(), Path()) for k in range(100))
    data = DataConfig(kind="rgbd", root=Path("."), heldout_fraction=heldout, gap_fraction=gap, frame_step=step)
    train, later = time_split(every, "train", data), time_split(every, "heldout", data)
    used = len(every[::step])
    assert len(later) == np.ceil(heldout * used)
    assert len(train) == max(0, used - len(later) - np.ceil(gap * used))
    if train:
        assert int(later[0].name) - int(train[-1].name) == step * (1 + np.ceil(gap * used))


def test_square_views_keep_the_geometry(seven_scenes: Path, scannet: Path) -> None:
    """A surface point found in the resized depth lies where the native camera sees it."""
    for root in (seven_scenes, scannet):
        native, square = only(root), only(root, image_size=56)
        for index in range(3):
            large, small = native.frame(index), square.frame(index)
            assert small.rgb.shape == (56, 56, 3)
            assert small.depth.shape == (56, 56)
            for u, v in ((5, 30), (28, 28), (50, 12)):
                if small.depth[v, u] <= 0:
                    continue
                place = back_project(small, u, v)
                there = project(large.depth_intrinsics, to_camera(large.pose, place))
                # Depth is the nearest reading: at most half a small pixel from the native one.
                side = large.depth.shape[0]
                left = (large.depth.shape[1] - side) // 2
                np.testing.assert_allclose(there, [left + (u + 0.5) * side / 56 - 0.5, (v + 0.5) * side / 56 - 0.5])
                thousand = to_thousand(project(small.intrinsics, to_camera(small.pose, place)), small)
                np.testing.assert_allclose(thousand, (np.array([u, v]) + 0.5) * 1000 / 56, atol=0.5)


def test_square_views_overlap_as_the_native_ones(seven_scenes: Path) -> None:
    native, square = only(seven_scenes), only(seven_scenes, image_size=112)

    def omega(scene: RgbdScene, i: int, j: int) -> float:
        a, b = (PosedDepth(f.depth, f.depth_intrinsics, f.pose) for f in (scene.frame(i), scene.frame(j)))
        return view_overlap(a, b, 2)

    pairs = [(0, 1), (1, 2), (2, 4), (3, 5)]
    assert np.corrcoef([omega(native, *p) for p in pairs], [omega(square, *p) for p in pairs])[0, 1] > 0.8


def check_points(sample: Sample) -> None:
    """Marks, depth, poses and golds of surface points agree."""
    places = [np.array(place) for place in sample.meta["gold"].get("points", [])]
    for mark, place in zip(sample.marks, places, strict=True):
        view = sample.views[mark.view]
        assert view.depth_path is not None
        assert view.pose is not None
        assert view.depth_intrinsics is not None
        depth = load_depth(view.depth_path)
        assert len(mark.xy) == 2
        assert f"{mark.color} point in image {mark.view}" in sample.question
        u, v = int(mark.xy[0] * depth.shape[1] / 1000), int(mark.xy[1] * depth.shape[0] / 1000)
        z = to_camera(view.pose, place)[2]
        assert depth[v, u] == pytest.approx(z, abs=0.002)
        patch = depth[v - 1 : v + 2, u - 1 : u + 2]
        assert patch.min() > 0
        assert np.abs(patch - z).max() < 0.05 * z
    if sample.task == "depth_prediction_oc_mv":
        blue = sample.views[sample.marks[1].view]
        assert blue.pose is not None
        assert sample.answer == f"{to_camera(blue.pose, places[1])[2]:.1f}"
    if sample.task == "distance_prediction_oo_mv":
        assert sample.answer == f"{np.linalg.norm(places[0] - places[1]):.1f}"


def test_questions_without_objects(seven_scenes: Path, tmp_path: Path) -> None:
    build_dataset(config(seven_scenes, samples=20, max_views=2, max_overlap=0.95), 0, "train", tmp_path / "d")
    samples = read_dataset(tmp_path / "d")
    assert len(samples) == 20
    assert "position_matching" not in {sample.task for sample in samples}
    for sample in samples:
        check_points(sample)


def test_without_gravity_relations_leave_height_out(seven_scenes: Path, tmp_path: Path) -> None:
    (seven_scenes / "gravity-direction.txt").unlink()
    data = config(seven_scenes, samples=6, max_views=2, max_overlap=0.95, tasks=["obj_spatial_relation_oc_mv"])
    build_dataset(data, 0, "train", tmp_path / "d")
    for sample in read_dataset(tmp_path / "d"):
        assert "above" not in sample.question + "".join(sample.meta["gold"]["relation"])
        assert sample.meta["up"] is None
        assert all(plan.frame is None for plan in sample.plans)


def test_depth_of_another_camera_is_laid_on_the_photo(scannet: Path, frames: list[Frame]) -> None:
    """The photo's camera sees 74 degrees, depth's 90: each pixel gets the depth that a camera like the photo's has."""
    photo = Room(7, RoomOptions(width=160, height=120, n_views=N, fov_deg=74.0))
    scene_folder = scannet / "scene0000_00"
    for number in range(N):
        Image.fromarray(photo.frame(number).rgb).resize((320, 240)).save(scene_folder / "color" / f"{number}.jpg")
    np.savetxt(scene_folder / "intrinsic" / "intrinsic_color.txt", scale_intrinsics(photo.intrinsics, 2, 2))
    scene = only(scannet)
    for index in range(2):
        frame, truth = scene.frame(index), photo.frame(index)
        np.testing.assert_allclose(frame.pose, truth.pose)
        np.testing.assert_allclose(frame.depth_intrinsics, photo.intrinsics)
        off = np.abs(frame.depth - truth.depth)
        assert np.quantile(off, 0.9) < 0.06
        assert np.quantile(np.abs(frames[index].depth - truth.depth), 0.5) > 0.1  # as it would be, unlaid
    # A wider photo has a border that depth does not reach.
    wide = np.loadtxt(scene_folder / "intrinsic" / "intrinsic_color.txt")
    wide[[0, 1], [0, 1]] *= 0.5
    depth, _ = on_the_photo(frames[0].depth, frames[0].depth_intrinsics, wide, (320, 240))
    shown = np.argwhere(depth > 0)
    assert depth.shape == (120, 160) and shown.min(axis=0)[1] > 20 and shown.max(axis=0)[1] < 140


def way_off(first: Frame, second: Frame) -> list[float]:
    """How far in pixels the photos say that surface points of `first`, carried by depth and poses, miss in `second`:
    where a piece of the first photo looks most alike. At half size, to whole pixels.
    """
    half, reach, rng = 5, 12, np.random.default_rng(0)
    gray, gray_2 = (np.asarray(Image.fromarray(f.rgb).convert("L").reduce(2), float) for f in (first, second))
    edge, size = half + reach + 1, 2
    found: list[float] = []
    height, width = gray.shape
    for _ in range(4000):
        u, v = int(rng.integers(edge, width - edge)), int(rng.integers(edge, height - edge))
        piece = gray[v - half : v + half + 1, u - half : u + half + 1]
        if first.depth[size * v, size * u] == 0 or min(np.abs(np.diff(piece, axis=a)).mean() for a in (0, 1)) < 6:
            continue
        there = to_camera(second.pose, back_project(first, size * u, size * v))
        at = np.rint(project(second.intrinsics, there) / size).astype(int)
        if there[2] < 0.1 or not (edge < at[0] < width - edge and edge < at[1] < height - edge):
            continue
        around = gray_2[at[1] - half - reach : at[1] + edge, at[0] - half - reach : at[0] + edge]
        pieces = np.lib.stride_tricks.sliding_window_view(around, piece.shape)
        pieces = pieces - pieces.mean(axis=(2, 3), keepdims=True)
        alike = (pieces * (piece - piece.mean())).mean(axis=(2, 3)) / (pieces.std(axis=(2, 3)) * piece.std() + 1e-6)
        best = np.unravel_index(alike.argmax(), alike.shape)
        if alike.max() > 0.9 and not {0, 2 * reach} & set(map(int, best)):
            found.append(float(np.hypot(*(np.array(best) - reach)) * size))
        if len(found) == 50:
            break
    return found


def test_redkitchens_photos_have_a_focal_length_of_their_own(redkitchen: Path) -> None:
    """As 7-Scenes is read, carried points miss by less than as if its photos were registered to its depth."""
    recording = read_sequences(DataConfig(kind="rgbd", root=redkitchen, check_geometry=False)).recordings[0]
    median = {}
    for zoom in (recording.color_zoom, 1.0):
        read_so = replace(recording, color_zoom=zoom)
        pairs = [(30, 38), (75, 82), (90, 97), (110, 118)]
        missed = [way_off(*(load_frame(recording.frames[i], read_so) for i in pair)) for pair in pairs]
        median[zoom] = float(np.median(np.concatenate(missed)))
    assert recording.color_zoom == pytest.approx(525 / 585)
    assert median[recording.color_zoom] < 10
    assert median[1.0] > 1.6 * median[recording.color_zoom]


def test_redkitchen(redkitchen: Path, tmp_path: Path) -> None:
    """Real frames: all usable, up agrees with the floor, and every question can be checked again."""
    data = DataConfig(kind="rgbd", root=redkitchen, image_size=112, frame_step=3, samples=40, heldout_samples=10)
    summary = build_dataset(data, 0, "train", tmp_path / "train")
    assert summary["source"]["frames_left_out"] == {}
    assert summary["source"]["up_known"]
    samples = read_dataset(tmp_path / "train")
    assert len(samples) == 40
    for sample in samples:
        check_points(sample)
        # Cameras in the hand look down at the table: 5 to 45 degrees below the horizon.
        frames = [plan.frame for plan in sample.plans]
        assert all(frame is not None and -50 < frame.pitch_deg < 5 and abs(frame.roll_deg) < 40 for frame in frames)
    build_dataset(data, 0, "heldout", tmp_path / "heldout")
    last = max(name for sample in samples for name in sample.meta["frames"])
    first = min(name for sample in read_dataset(tmp_path / "heldout") for name in sample.meta["frames"])
    assert last < first


def test_capital_endings_and_poses_in_other_shapes_are_read(seven_scenes: Path, frames: list[Frame]) -> None:
    for path in list(seven_scenes.glob("frame-*")):
        path.rename(path.with_name(path.name.replace(".jpg", ".JPG").replace(".png", ".PNG")))
    shapes = [lambda pose: pose[:3], lambda pose: pose.reshape(1, 16), lambda pose: pose[:3].reshape(1, 12)]
    for number, shape in enumerate(shapes):
        np.savetxt(seven_scenes / f"frame-{number * 5:06d}.pose.txt", shape(frames[number].pose))
    scene = only(seven_scenes)
    assert len(scene) == 6
    for index in range(3):
        np.testing.assert_allclose(scene.frame(index).pose, frames[index].pose)


def stored_turned(path: Path, orientation: int) -> None:
    """The photo's pixels stay, its EXIF says how to hold it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif, quality=95)


@pytest.mark.parametrize("orientation", [6, 8])
def test_turned_photos_are_turned_with_depth_intrinsics_and_pose(
    seven_scenes: Path, frames: list[Frame], orientation: int
) -> None:
    for path in seven_scenes.glob("*.color.jpg"):
        stored_turned(path, orientation)
    scene = only(seven_scenes)
    for index in range(3):
        frame, stored = scene.frame(index), frames[index]
        assert frame.rgb.shape == (160, 120, 3)
        assert frame.depth.shape == (160, 120)
        upright = np.rot90(stored.rgb, -1 if orientation == 6 else 1)
        assert np.abs(frame.rgb.astype(int) - upright).mean() < 12
        for v, u in np.argwhere(frame.depth > 0)[::2500]:
            place = back_project(frame, u, v)
            there = project(stored.depth_intrinsics, to_camera(stored.pose, place))
            np.testing.assert_allclose(there, (v, 119 - u) if orientation == 6 else (159 - v, u), atol=1e-6)


def test_photos_whose_turn_is_not_plain_are_left_out(seven_scenes: Path) -> None:
    stored_turned(seven_scenes / "frame-000000.color.jpg", 3)
    upright = Image.open(seven_scenes / "frame-000005.color.jpg").transpose(Image.Transpose.ROTATE_90)
    upright.save(seven_scenes / "frame-000005.color.jpg")
    recordings = read_sequences(config(seven_scenes))
    assert len(recordings.split("train")[0]) == 4
    assert recordings.summary["frames_left_out"] == {"colour stored turned": 1, "colour turned against depth": 1}
    assert "frame-000005.color.jpg is 120 x 160, its depth 160 x 120" in recordings.summary["examples_left_out"][1]


def test_a_photo_that_exif_turns_to_lie_as_depth_does(scannet: Path, frames: list[Frame]) -> None:
    path = scannet / "scene0000_00" / "color" / "0.jpg"
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    stored_turned(path, 6)
    frame = only(scannet).frame(0)
    np.testing.assert_allclose(frame.pose, frames[0].pose)
    big = np.asarray(Image.fromarray(frames[0].rgb).resize((320, 240))).astype(int)
    assert np.abs(frame.rgb - big).mean() < 12


def test_colour_intrinsics_of_another_size_are_refused_and_can_be_rescaled(scannet: Path) -> None:
    path = scannet / "scene0000_00" / "intrinsic" / "intrinsic_color.txt"
    kept = np.loadtxt(path)
    np.savetxt(path, np.vstack([4.05 * kept[:2], kept[2:]]))
    with pytest.raises(ValueError, match=r"intrinsics of another grid: colour image .*0\.jpg is 320 x 240.* as of 12"):
        read_sequences(config(scannet)).split("train")
    frame = only(scannet, convention="intrinsics_to_size").frame(0)
    np.testing.assert_allclose(frame.intrinsics[:2], kept[:2, :3], rtol=0.02)


@pytest.mark.parametrize(
    ("one", "other"),
    [(("kitchen-seq-01",), ("kitchen", "seq-01")), ((), ("scans",)), (("seq-01",), ("seq-01", "seq-01"))],
)
def test_two_folders_whose_names_join_to_one(
    seven_scenes: Path, tmp_path: Path, one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    """No sample has the picture of one folder with the pose of the other."""
    root = tmp_path / "scans"
    others = Room(8, RoomOptions(width=160, height=120, n_views=N))
    shutil.copytree(seven_scenes, root.joinpath(*one), dirs_exist_ok=True)
    shutil.copytree(seven_scenes, root.joinpath(*other), dirs_exist_ok=True)
    for number in range(N):
        frame = others.frame(number)
        stem = root.joinpath(*other) / f"frame-{number * 5:06d}"
        Image.fromarray(frame.rgb).save(f"{stem}.color.jpg", quality=95)
        save_depth(Path(f"{stem}.depth.png"), frame.depth)
        np.savetxt(f"{stem}.pose.txt", frame.pose)
    scenes = read_sequences(config(root)).split("train")
    assert len({scene.id for scene in scenes}) == 2
    build_dataset(config(root, samples=24, max_views=2, max_overlap=0.95), 0, "train", tmp_path / "d")
    for sample in read_dataset(tmp_path / "d"):
        check_points(sample)
        for view in sample.views:
            assert view.pose is not None
            both = [np.abs(np.loadtxt(path) - view.pose).max() < 1e-9 for path in sorted(root.rglob("*.pose.txt"))]
            pose_file = sorted(root.rglob("*.pose.txt"))[both.index(True)]
            photo = np.asarray(Image.open(str(pose_file).replace("pose.txt", "color.jpg"))).astype(int)
            assert np.abs(np.asarray(Image.open(view.image_path)) - photo).max() == 0


def test_a_camera_that_is_too_far_away_is_left_out(seven_scenes: Path, frames: list[Frame], tmp_path: Path) -> None:
    far = frames[0].pose.copy()
    far[0, 3] += 25
    np.savetxt(seven_scenes / "frame-000000.pose.txt", far)
    data = config(seven_scenes, samples=12, max_views=2, min_overlap=0.0, max_overlap=0.95)
    built = build_dataset(data, 0, "train", tmp_path / "d")
    assert built["samples"] == 12
    assert built["refused_views_by_reason"]["cameras_too_far_apart"] > 0
