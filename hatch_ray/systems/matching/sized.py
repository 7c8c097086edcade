"""A scene whose pictures are no larger than the model sees them: marks are drawn at that size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from hatch_ray.config_sections import DataConfig
from hatch_ray.data.build import scenes_of
from hatch_ray.data.images import shrunk_size
from hatch_ray.data.scene import Frame, Scene
from hatch_ray.data.scenes.posed import Landmarks, PosedScene
from hatch_ray.data.store import Split
from hatch_ray.geometry.convention import scale_intrinsics

KEPT = 16
"""Frames that stay decoded."""


class SceneRefused(ValueError):
    """A scene that cannot be used, and why; others can."""


def views_of(
    data: DataConfig, seed: int, split: Split, max_pixels: int
) -> tuple[Sequence[Callable[[], Scene]], dict[str, Any]]:
    """What makes each scene of a split, and what their source says of itself. Making one may raise SceneRefused.

    Raises ValueError for data that has no scenes.
    """
    if data.kind == "spar":
        raise ValueError("the system matching makes its questions from scenes: set data.kind to rooms, rgbd or scenes")
    scenes, source = scenes_of(data, seed, split)
    if data.kind == "scenes":
        scenes = [partial(_sized, scene, max_pixels) for scene in scenes]
    return scenes, source


def _sized(read: Callable[[], Scene], max_pixels: int) -> Scene:
    try:
        scene = read()
    except ValueError as error:
        raise SceneRefused(str(error)) from None
    assert isinstance(scene, PosedScene)
    return SizedScene(scene, max_pixels)


def check_size(frame: Frame, max_pixels: int) -> None:
    """Raise ValueError when a picture is larger than the model sees it."""
    height, width = frame.rgb.shape[:2]
    if width * height > max_pixels:
        raise ValueError(
            f"pictures have {width} x {height} pixels, more than model.max_pixels={max_pixels}: marks would "
            "shrink; raise that, or lower data.rooms.image_size or data.image_size"
        )


class SizedScene:
    """Frames and landmarks of a posed scene, in pictures of at most `max_pixels`; depth keeps its own grid."""

    def __init__(self, scene: PosedScene, max_pixels: int) -> None:
        self.id, self.up, self.objects, self.views = scene.id, scene.up, scene.objects, scene.views
        self.form, self.has_depth = scene.form, scene.has_depth
        self._scene, self._max_pixels = scene, max_pixels
        self._frames: OrderedDict[int, Frame] = OrderedDict()
        self.landmarks = None if scene.landmarks is None else self._scaled(scene.landmarks)

    def __len__(self) -> int:
        return len(self._scene)

    def frame(self, index: int) -> Frame:
        """Raises Refusal when its files cannot be read."""
        if index not in self._frames:
            self._frames[index] = self._sized(self._scene.frame(index))
            if len(self._frames) > KEPT:
                self._frames.popitem(last=False)
        self._frames.move_to_end(index)
        return self._frames[index]

    def _sized(self, frame: Frame) -> Frame:
        height, width = frame.rgb.shape[:2]
        size = shrunk_size(width, height, self._max_pixels)
        if size == (width, height):
            return frame
        rgb = np.asarray(Image.fromarray(frame.rgb).resize(size, Image.Resampling.BICUBIC))
        return replace(frame, rgb=rgb, intrinsics=scale_intrinsics(frame.intrinsics, size[0] / width, size[1] / height))

    def _scaled(self, landmarks: Landmarks) -> Landmarks:
        sizes = [(view.lens.width, view.lens.height) for view in self.views]
        factors = np.array([np.divide(shrunk_size(*size, self._max_pixels), size) for size in sizes])
        return replace(landmarks, pixels=(landmarks.pixels + 0.5) * factors[landmarks.view] - 0.5)
