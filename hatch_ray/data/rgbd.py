"""Folders of posed RGB-D frames: the 7-Scenes form and ScanNet's exported form.

7-Scenes form, in one folder or in sequence folders below it (`seq-01/`, ...):
    frame-000000.color.png|jpg, frame-000000.depth.png, frame-000000.pose.txt
    camera-intrinsics.txt   3x3 for the depth grid, in the sequence's folder or above it; 7-Scenes does not ship it.
                            Colour is taken as registered to depth: the same matrix, scaled when its size differs.
    gravity-direction.txt   optional: 3 numbers, the direction in which things fall, in world axes; up is its opposite.
ScanNet form, in one folder or in scene folders below it:
    color/0.jpg, depth/0.png, pose/0.txt, intrinsic/intrinsic_color.txt, intrinsic/intrinsic_depth.txt (4x4 or 3x3)
    World z is up.
In both, depth is a 16-bit PNG in millimetres (0 and 65535: no reading), poses are 4x4 camera-to-world, OpenCV axes.

A frame that cannot be trusted is left out with its reason; the summary counts them.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hatch_ray.config_sections import DataConfig
from hatch_ray.data.images import load_depth, load_image
from hatch_ray.data.scene import Frame, SceneObject
from hatch_ray.geometry.se3 import as_transform

SEVEN_SCENES_FILE = re.compile(r"(frame-(\d+))\.(color\.(?:png|jpe?g)|depth\.png|pose\.txt)$")
SCANNET_FILE = re.compile(r"((\d+))\.(jpe?g|png|txt)$")
PLAUSIBLE_MEDIAN_M = (0.3, 15.0)
MIN_VALID_DEPTH = 0.01
CACHE_MEGABYTES = 512
EXAMPLES_A_REASON = 3
EXPECTED = (
    "expected frame-000000.color.png|jpg, .depth.png, .pose.txt (7-Scenes form), "
    "or color/, depth/, pose/ and intrinsic/ (ScanNet form), in it or in folders below it"
)


class FrameRefused(ValueError):
    """A frame that cannot be used: a stable reason for counting, and the file with what is wrong with it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class FrameFiles:
    """The three files of one frame; they may be missing on disk."""

    name: str
    color: Path
    depth: Path
    pose: Path


@dataclass(frozen=True)
class Recording:
    """One sequence as found on disk, frames in order of time, nothing loaded.

    color_intrinsics, depth_intrinsics: (3, 3); the colour one is None where it follows from the depth one.
    """

    name: str
    frames: tuple[FrameFiles, ...]
    depth_intrinsics: np.ndarray
    color_intrinsics: np.ndarray | None
    up: np.ndarray | None


class RgbdScene:
    """Part of a recording as a Scene. Frames load when asked for; recently used ones are kept.

    image_size: 0 keeps the native grids; otherwise each grid is cut to its centre square and resized (colour smoothly,
    depth to the nearest reading), with the intrinsics following.
    """

    objects: tuple[SceneObject, ...] = ()

    def __init__(self, id: str, recording: Recording, frames: list[FrameFiles], image_size: int) -> None:
        self.id, self.up = id, recording.up
        self._recording, self._frames, self._size = recording, frames, image_size
        self._cache: OrderedDict[int, Frame] = OrderedDict()

    def __len__(self) -> int:
        return len(self._frames)

    def frame(self, index: int) -> Frame:
        """Frame `index` in order of time. Raises FrameRefused (a ValueError) when it cannot be used."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        frame = load_frame(self._frames[index], self._recording, self._size)
        self._remember(index, frame)
        return frame

    def drop_bad_frames(self) -> list[FrameRefused]:
        """Load every frame once, keep those that can be used, return why the others cannot."""
        kept: list[FrameFiles] = []
        refused: list[FrameRefused] = []
        for files in self._frames:
            try:
                self._remember(len(kept), load_frame(files, self._recording, self._size))
            except FrameRefused as refusal:
                refused.append(refusal)
            else:
                kept.append(files)
        self._frames = kept
        return refused

    def _remember(self, index: int, frame: Frame) -> None:
        self._cache[index] = frame
        room_for = CACHE_MEGABYTES * 2**20 // (frame.rgb.nbytes + frame.depth.nbytes)
        while len(self._cache) > max(2, room_for):
            self._cache.popitem(last=False)


def load_frame(files: FrameFiles, recording: Recording, image_size: int = 0) -> Frame:
    """Load and check one frame.

    Raises FrameRefused naming the file: missing or unreadable file, broken pose, no depth, implausible units.
    """
    pose = load_pose(files.pose)
    for path, what in ((files.depth, "depth"), (files.color, "colour")):
        if not path.is_file():
            raise FrameRefused(f"missing {what}", f"{path} does not exist")
    try:
        depth = load_depth(files.depth)
    except ValueError as error:
        raise FrameRefused("unreadable depth", str(error)) from None
    valid = depth[depth > 0]
    if valid.size < MIN_VALID_DEPTH * depth.size:
        raise FrameRefused("no valid depth", f"{files.depth} has readings in {valid.size} of {depth.size} pixels")
    median = float(np.median(valid))
    if not PLAUSIBLE_MEDIAN_M[0] <= median <= PLAUSIBLE_MEDIAN_M[1]:
        raise FrameRefused(
            "implausible depth units", f"{files.depth} has a median depth of {median:.3g} m; depth must be millimetres"
        )
    try:
        image = load_image(files.color)
    except ValueError as error:
        raise FrameRefused("unreadable colour", str(error)) from None
    depth_k = recording.depth_intrinsics
    color_k = recording.color_intrinsics
    if color_k is None:
        color_k = scale_intrinsics(depth_k, image.width / depth.shape[1], image.height / depth.shape[0])
    if image_size:
        image, color_k = _square_color(image, color_k, image_size)
        depth, depth_k = _square_depth(depth, depth_k, image_size)
    return Frame(files.name, np.asarray(image), depth, color_k, depth_k, pose)


def load_pose(path: Path) -> np.ndarray:
    """(4, 4) camera-to-world of a text file. Raises FrameRefused when it is missing or not a pose."""
    if not path.is_file():
        raise FrameRefused("missing pose", f"{path} does not exist")
    try:
        pose = read_matrix(path, ((4, 4),))
        as_transform(pose)
    except ValueError as error:
        raise FrameRefused("broken pose", f"{path}: {error}") from None
    return pose


def scale_intrinsics(k: np.ndarray, scale_x: float, scale_y: float) -> np.ndarray:
    """The matrix of the same camera on a grid scaled by these factors (pixel centres at integers)."""
    scaled = k.astype(float).copy()
    scaled[0] *= scale_x
    scaled[1] *= scale_y
    scaled[0, 2] = (k[0, 2] + 0.5) * scale_x - 0.5
    scaled[1, 2] = (k[1, 2] + 0.5) * scale_y - 0.5
    return scaled


def _square_intrinsics(k: np.ndarray, left: int, top: int, side: int, size: int) -> np.ndarray:
    cropped = k.astype(float).copy()
    cropped[0, 2] -= left
    cropped[1, 2] -= top
    return scale_intrinsics(cropped, size / side, size / side)


def _square_color(image: Image.Image, k: np.ndarray, size: int) -> tuple[Image.Image, np.ndarray]:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cut = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return cut, _square_intrinsics(k, left, top, side, size)


def _square_depth(depth: np.ndarray, k: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = depth.shape
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    pick = ((np.arange(size) + 0.5) * side / size).astype(int)
    return depth[top + pick[:, None], left + pick], _square_intrinsics(k, left, top, side, size)


def read_matrix(path: Path, shapes: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Numbers of a text file. Raises ValueError when it does not hold a matrix of one of these shapes."""
    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    try:
        matrix = np.loadtxt(path, dtype=float)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"not a table of numbers ({error})") from None
    if matrix.shape not in shapes:
        wanted = " or ".join("x".join(map(str, shape)) for shape in shapes)
        raise ValueError(f"holds an array of shape {matrix.shape}, expected {wanted}")
    return matrix


def read_intrinsics(path: Path) -> np.ndarray:
    """(3, 3) from a 3x3 or 4x4 text file. Raises ValueError naming the file."""
    try:
        k = read_matrix(path, ((3, 3), (4, 4)))[:3, :3]
    except ValueError as error:
        raise ValueError(f"intrinsics {path}: {error}") from None
    if not np.isfinite(k).all() or k[0, 0] <= 0 or k[1, 1] <= 0 or k[2, 2] != 1:
        raise ValueError(f"intrinsics {path} are not a pinhole matrix with positive focal lengths")
    return k


@dataclass
class Recordings:
    """All sequences below a root, ready to be split by time.

    summary: found, used, left out by reason, first examples; filled by `split`.
    """

    data: DataConfig
    recordings: list[Recording]
    summary: dict[str, Any] = field(default_factory=dict)

    def split(self, name: str) -> list[RgbdScene]:
        """ "train" (the first part of each sequence) or "heldout" (the last), checked frame by frame.

        Raises ValueError when no frame can be used.
        """
        scenes, reasons, examples = [], Counter[str](), []
        found = 0
        for recording in self.recordings:
            frames = time_split(recording.frames, name, self.data)
            found += len(frames)
            scene = RgbdScene(f"{recording.name}-{name}", recording, frames, self.data.image_size)
            for refusal in scene.drop_bad_frames():
                reasons[refusal.reason] += 1
                if reasons[refusal.reason] <= EXAMPLES_A_REASON:
                    examples.append(str(refusal))
            if len(scene):
                scenes.append(scene)
        used = found - reasons.total()
        self.summary = {
            "root": str(self.data.root),
            "sequences": len(self.recordings),
            "frames_in_split": found,
            "frames_used": used,
            "frames_left_out": dict(reasons),
            "examples_left_out": examples,
            "up_known": all(recording.up is not None for recording in self.recordings),
        }
        if not used:
            first = f" The first: {examples[0]}" if examples else ""
            raise ValueError(f"none of the {found} {name} frames below {self.data.root} can be used.{first}")
        return scenes


def time_split(frames: tuple[FrameFiles, ...], name: str, data: DataConfig) -> list[FrameFiles]:
    """Every `frame_step`-th frame; the last `heldout_fraction` is held out, a gap before it is used by neither."""
    stepped = list(frames[:: data.frame_step])
    heldout = int(np.ceil(data.heldout_fraction * len(stepped)))
    gap = int(np.ceil(data.gap_fraction * len(stepped)))
    if name == "heldout":
        return stepped[len(stepped) - heldout :]
    return stepped[: max(0, len(stepped) - heldout - gap)]


def read_sequences(data: DataConfig) -> Recordings:
    """Find the recordings below data.root.

    Raises ValueError when the folder is missing, holds neither form, or lacks intrinsics.
    """
    root = data.root
    if root is None or not root.is_dir():
        raise ValueError(f"data.root {root} is not a folder")
    recordings = []
    for folder in [root, *sorted(path for path in root.glob("*/") if path.is_dir()), *sorted(root.glob("*/*/"))]:
        frames = _seven_scenes_frames(folder)
        name = root.name if folder == root else "-".join(folder.relative_to(root).parts)
        if frames:
            recordings.append(_seven_scenes(name, folder, root, frames))
        elif all((folder / part).is_dir() for part in ("color", "depth", "pose")):
            recordings.append(_scannet(name, folder))
    if not recordings:
        raise ValueError(f"{root} holds no posed RGB-D frames; {EXPECTED}")
    return Recordings(data, recordings)


def _seven_scenes_frames(folder: Path) -> tuple[FrameFiles, ...]:
    """Frames of which any file is there, in order of their numbers."""
    colors: dict[str, Path] = {}
    numbers: dict[str, int] = {}
    for path in folder.iterdir():
        found = SEVEN_SCENES_FILE.match(path.name)
        if found:
            numbers[found[1]] = int(found[2])
            if found[3].startswith("color"):
                colors[found[1]] = path
    return tuple(
        FrameFiles(
            name,
            colors.get(name, folder / f"{name}.color.png"),
            folder / f"{name}.depth.png",
            folder / f"{name}.pose.txt",
        )
        for name in sorted(numbers, key=numbers.__getitem__)
    )


def _nearest(name: str, folder: Path, root: Path) -> Path | None:
    """The file in the folder, or in the nearest one above it down from the root."""
    for place in (folder, *folder.parents):
        if (place / name).is_file():
            return place / name
        if place == root:
            return None
    return None


def _seven_scenes(name: str, folder: Path, root: Path, frames: tuple[FrameFiles, ...]) -> Recording:
    intrinsics = _nearest("camera-intrinsics.txt", folder, root)
    if intrinsics is None:
        raise ValueError(
            f"{folder} has no camera-intrinsics.txt; write one with the 3x3 pinhole matrix of the depth camera "
            "(for 7-Scenes: 585 0 320 / 0 585 240 / 0 0 1)"
        )
    gravity = _nearest("gravity-direction.txt", folder, root)
    return Recording(name, frames, read_intrinsics(intrinsics), None, None if gravity is None else _up(gravity))


def _up(path: Path) -> np.ndarray:
    try:
        gravity = read_matrix(path, ((3,),))
    except ValueError as error:
        raise ValueError(f"gravity {path}: {error}") from None
    length = np.linalg.norm(gravity)
    if not (np.isfinite(length) and length > 1e-6):
        raise ValueError(f"gravity {path} is not a direction")
    return -gravity / length


def _scannet(name: str, folder: Path) -> Recording:
    numbers: dict[str, int] = {}
    colors: dict[str, Path] = {}
    for part in ("color", "depth", "pose"):
        for path in (folder / part).iterdir():
            found = SCANNET_FILE.match(path.name)
            if found:
                numbers[found[1]] = int(found[2])
                if part == "color":
                    colors[found[1]] = path
    if not numbers:
        raise ValueError(f"{folder} has color/, depth/ and pose/ but no frames in them")
    frames = tuple(
        FrameFiles(
            frame,
            colors.get(frame, folder / "color" / f"{frame}.jpg"),
            folder / "depth" / f"{frame}.png",
            folder / "pose" / f"{frame}.txt",
        )
        for frame in sorted(numbers, key=numbers.__getitem__)
    )
    matrices = {}
    for grid in ("color", "depth"):
        path = folder / "intrinsic" / f"intrinsic_{grid}.txt"
        if not path.is_file():
            raise ValueError(f"{folder} has no intrinsic/intrinsic_{grid}.txt; export it with ScanNet's SensReader")
        matrices[grid] = read_intrinsics(path)
    return Recording(name, frames, matrices["depth"], matrices["color"], np.array([0.0, 0.0, 1.0]))
