"""Folders of posed RGB-D frames: the 7-Scenes form and ScanNet's exported form.

7-Scenes form, in one folder or in sequence folders below it (`seq-01/`, ...):
    frame-000000.color.png|jpg, frame-000000.depth.png, frame-000000.pose.txt
    camera-intrinsics.txt   3x3 for the depth grid, in the sequence's folder or above it; 7-Scenes does not ship it.
                            Colour is taken as registered to depth: the same matrix, scaled when its size differs.
                            7-Scenes' own (f = 585) is known: its photos are not registered, theirs is 525.
    gravity-direction.txt   optional: 3 numbers, the direction in which things fall, in world axes; up is its opposite.
ScanNet form, in one folder or in scene folders below it:
    color/0.jpg, depth/0.png, pose/0.txt, intrinsic/intrinsic_color.txt, intrinsic/intrinsic_depth.txt (4x4 or 3x3)
    World z is up.
In both, depth is a 16-bit PNG in millimetres (0 and 65535: no reading), poses are camera-to-world, OpenCV axes (4x4,
3x4, or their numbers on a line). data.convention says where files mean something else; some near views of each scene
are compared, and files that do not fit each other are refused.

A frame that cannot be trusted is left out with its reason; the summary counts them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hatch_ray.config_sections import DataConfig
from hatch_ray.data.camera_files import read_intrinsics, read_matrix, read_pose
from hatch_ray.data.geometry_check import StoredScene, words_or_refusal
from hatch_ray.data.images import image_size, load_depth
from hatch_ray.data.refusals import EXAMPLES_A_REASON
from hatch_ray.data.rgbd_frames import FrameFiles, Recording, RgbdScene
from hatch_ray.data.unique import UniqueNames
from hatch_ray.geometry.agreement import StoredView
from hatch_ray.geometry.convention import Convention

SEVEN_SCENES_FILE = re.compile(r"(frame-(\d+))\.(color\.(?:png|jpe?g)|depth\.png|pose\.txt)$", re.IGNORECASE)
SCANNET_FILE = re.compile(r"((\d+))\.(jpe?g|png|txt)$", re.IGNORECASE)
SEVEN_SCENES_DEPTH = np.array([[585.0, 0, 320], [0, 585.0, 240], [0, 0, 1]])
"""The depth camera that 7-Scenes was published with, on its 640 x 480 pixels."""
SEVEN_SCENES_ZOOM = 525 / 585
"""Its colour camera's focal length over the depth camera's: a Kinect's usual one, which fits the photos
(`tests/data/test_rgbd.py`); it was not published."""
PARTS = {"color": "jpg", "depth": "png", "pose": "txt"}
Item = TypeVar("Item")
EXPECTED = (
    "expected frame-000000.color.png|jpg, .depth.png, .pose.txt (7-Scenes form), "
    "or color/, depth/, pose/ and intrinsic/ (ScanNet form), in it or in folders below it"
)


@dataclass
class Recordings:
    """All sequences below a root, ready to be split by time.

    summary: found, used, left out by reason, first examples; filled by `split`.
    """

    data: DataConfig
    recordings: list[Recording]
    geometry: list[str] = field(default_factory=list)
    """What the check of poses, depth and intrinsics found, a line a scene that was looked at."""
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
            "geometry": self.geometry,
            "up_known": all(recording.up is not None for recording in self.recordings),
        }
        if not used:
            first = f" The first: {examples[0]}" if examples else ""
            raise ValueError(f"none of the {found} {name} frames below {self.data.root} can be used.{first}")
        return scenes


def time_split(frames: Sequence[Item], name: str, data: DataConfig) -> list[Item]:
    """Every `frame_step`-th frame; the last `heldout_fraction` is held out, a gap before it is used by neither."""
    stepped = list(frames[:: data.frame_step])
    heldout = int(np.ceil(data.heldout_fraction * len(stepped)))
    gap = int(np.ceil(data.gap_fraction * len(stepped)))
    if name == "heldout":
        return stepped[len(stepped) - heldout :]
    return stepped[: max(0, len(stepped) - heldout - gap)]


def read_sequences(data: DataConfig) -> Recordings:
    """Find the recordings below data.root, and check that some near views fit each other.

    Raises ValueError when the folder is missing, holds neither form, lacks intrinsics, or (data.check_geometry) when
    its files mean something else than data.convention says.
    """
    read_as = Convention.parse(data.convention)
    recordings = find_recordings(data.root, read_as)
    geometry = words_or_refusal(stored_scenes(recordings), read_as, data.root) if data.check_geometry else []
    return Recordings(data, recordings, geometry)


def find_recordings(root: Path | None, convention: Convention) -> list[Recording]:
    """All sequences below a root, each with a name of its own. Raises ValueError as `read_sequences` but the last."""
    if root is None or not root.is_dir():
        raise ValueError(f"data.root {root} is not a folder")
    recordings = []
    names = UniqueNames()
    for folder in [root, *sorted(path for path in root.glob("*/") if path.is_dir()), *sorted(root.glob("*/*/"))]:
        frames = _seven_scenes_frames(folder)
        parts = folder.relative_to(root).parts
        wanted = "-".join(parts) or root.resolve().name
        if frames:
            recordings.append(_seven_scenes(names.of(folder, wanted), folder, root, frames, convention))
        elif all((folder / part).is_dir() for part in PARTS):
            recordings.append(_scannet(names.of(folder, wanted), folder, convention))
    if not recordings:
        raise ValueError(f"{root} holds no posed RGB-D frames; {EXPECTED}")
    return recordings


def stored_scenes(recordings: Iterable[Recording]) -> list[StoredScene]:
    """The recordings for `check_geometry`."""
    return [_stored(recording) for recording in recordings]


def _stored(recording: Recording) -> StoredScene:
    frames = recording.frames

    def load(index: int) -> StoredView:
        files = frames[index]
        try:
            color_width = image_size(files.color)[0]
        except ValueError:
            color_width = 0
        depth, pose = load_depth(files.depth), read_pose(files.pose)
        return StoredView(files.name, depth, recording.depth_intrinsics, pose, color_width)

    return StoredScene(recording.name, len(frames), lambda index: read_pose(frames[index].pose), load)


def _frames(
    found: Iterable[tuple[str, re.Match[str], Path]], absent: Callable[[str, str, str], Path]
) -> tuple[FrameFiles, ...]:
    """Frames of which any file is there, in order of their numbers. found: part, name and number, path of each file.

    absent: (name, part, ending) -> where a file would be.
    """
    numbers: dict[str, int] = {}
    paths: dict[tuple[str, str], Path] = {}
    for part, match, path in found:
        numbers[match[1]] = int(match[2])
        paths[match[1], part] = path
    return tuple(
        FrameFiles(name, *(paths.get((name, part), absent(name, part, ending)) for part, ending in PARTS.items()))
        for name in sorted(numbers, key=numbers.__getitem__)
    )


def _seven_scenes_frames(folder: Path) -> tuple[FrameFiles, ...]:
    files = ((SEVEN_SCENES_FILE.match(path.name), path) for path in sorted(folder.iterdir()))
    found = ((match[3].partition(".")[0].lower(), match, path) for match, path in files if match)
    return _frames(found, lambda name, part, ending: folder / f"{name}.{part}.{'png' if part == 'color' else ending}")


def _nearest(name: str, folder: Path, root: Path) -> Path | None:
    """The file in the folder, or in the nearest one above it down from the root."""
    places = [place for place in (folder, *folder.parents) if place.is_relative_to(root)]
    return next((place / name for place in places if (place / name).is_file()), None)


def _seven_scenes(
    name: str, folder: Path, root: Path, frames: tuple[FrameFiles, ...], convention: Convention
) -> Recording:
    intrinsics = _nearest("camera-intrinsics.txt", folder, root)
    if intrinsics is None:
        raise ValueError(
            f"{folder} has no camera-intrinsics.txt; write one with the 3x3 pinhole matrix of the depth camera "
            "(for 7-Scenes: 585 0 320 / 0 585 240 / 0 0 1)"
        )
    gravity = _nearest("gravity-direction.txt", folder, root)
    up = None if gravity is None else convention.world(_up(gravity))
    k = read_intrinsics(intrinsics)
    zoom = SEVEN_SCENES_ZOOM if np.allclose(k, SEVEN_SCENES_DEPTH) else 1.0
    return Recording(name, frames, k, None, up, convention, zoom)


def _up(path: Path) -> np.ndarray:
    try:
        gravity = read_matrix(path, ((3,),))
    except ValueError as error:
        raise ValueError(f"gravity {path}: {error}") from None
    length = np.linalg.norm(gravity)
    if not (np.isfinite(length) and length > 1e-6):
        raise ValueError(f"gravity {path} is not a direction")
    return -gravity / length


def _scannet(name: str, folder: Path, convention: Convention) -> Recording:
    paths = [
        (part, SCANNET_FILE.match(path.name), path) for part in PARTS for path in sorted((folder / part).iterdir())
    ]
    found = ((part, match, path) for part, match, path in paths if match)
    frames = _frames(found, lambda name, part, ending: folder / part / f"{name}.{ending}")
    if not frames:
        raise ValueError(f"{folder} has color/, depth/ and pose/ but no frames in them")
    matrices = {}
    for grid in ("color", "depth"):
        path = folder / "intrinsic" / f"intrinsic_{grid}.txt"
        if not path.is_file():
            raise ValueError(f"{folder} has no intrinsic/intrinsic_{grid}.txt; export it with ScanNet's SensReader")
        matrices[grid] = read_intrinsics(path)
    up = convention.world(np.array([0.0, 0.0, 1.0]))
    return Recording(name, frames, matrices["depth"], matrices["color"], up, convention)
