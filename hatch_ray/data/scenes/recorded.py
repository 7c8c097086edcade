"""Posed RGB-D folders in the 7-Scenes form and ScanNet's exported one (`hatch_ray.data.rgbd`): a recording a scene."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from hatch_ray.data.camera_files import load_pose
from hatch_ray.data.images import image_size, load_depth
from hatch_ray.data.refusals import Refusal
from hatch_ray.data.rgbd import find_recordings
from hatch_ray.data.rgbd_frames import FrameFiles, on_the_photo
from hatch_ray.data.scenes.posed import PosedImage, PosedScene, gather, posed_image
from hatch_ray.geometry.convention import AS_OURS, Convention
from hatch_ray.geometry.lens import Lens

FORM = "recorded"
LOOKS_LIKE = (
    "frame-N.color, .depth and .pose files (7-Scenes), or color/, depth/, pose/ and intrinsic/ (ScanNet's export)"
)


def recognises(path: Path) -> bool:
    exported = all((path / part).is_dir() for part in ("color", "depth", "pose"))
    return exported or (path.is_dir() and next(path.glob("frame-*.pose.txt"), None) is not None)


def read(path: Path, convention: Convention = AS_OURS) -> PosedScene:
    """The scene of a folder. convention: what its files mean. Raises ValueError as `find_recordings`, and where no
    frame is usable.
    """
    recording = next(found for found in find_recordings(path, convention))

    def posed(files: FrameFiles) -> PosedImage:
        pose = load_pose(files.pose, convention)
        try:
            width, height = image_size(files.color)
            depth_size = image_size(files.depth)
        except ValueError as error:
            lost = next((part for part in (files.color, files.depth) if not part.is_file()), None)
            raise Refusal("unreadable image" if lost is None else "missing image", str(error)) from None
        depth_k = convention.intrinsics(recording.depth_intrinsics, *depth_size, (width,))
        try:
            depth_lens = Lens(depth_k, *depth_size)
            if recording.color_intrinsics is None:
                depth_lens.resized(width, height)  # a photo of another shape is refused
            lens = Lens(recording.color_k(depth_k, depth_size, (width, height)), width, height)
        except ValueError as error:
            raise Refusal("intrinsics of another grid", f"{files.color} {error}") from None
        return posed_image(
            files.name, files.color, lens, pose, partial(_depth, files.depth, convention, depth_lens, lens)
        )

    return gather(FORM, path, recording.frames, posed, up=recording.up)


def _depth(file: Path, convention: Convention, depth_lens: Lens, lens: Lens) -> np.ndarray:
    """As the photo's camera has it."""
    depth = load_depth(file) * np.float32(convention.depth)
    return on_the_photo(depth, depth_lens.k, lens.k, (lens.width, lens.height))[0]
