"""A scene of posed pictures: what every reader of this folder gives.

Poses are camera-to-world with OpenCV axes, pixels have their centres at integers. Everything that a scene gives is a
pinhole camera's: where the lens distorts, frames are straightened and landmarks stand where the straight picture has
them; `Lens.distort` leads back to the picture as it is stored. Lengths are in the source's units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from hatch_ray.data.images import exif_orientation, image_size, load_stored, upright
from hatch_ray.data.refusals import Refusal
from hatch_ray.data.rgbd_frames import QUARTER_TURNS
from hatch_ray.data.scene import Frame, SceneObject
from hatch_ray.geometry.lens import Lens
from hatch_ray.geometry.se3 import as_transform

FITS = 0.01
"""Landmarks must project this near to the pixels that see them (median, in widths of the picture)."""
WRAPPERS = ("0", "sparse", "colmap", "nerfstudio")
"""Folders in which a scene lies, named alike for all: the scene is named by the one above."""
Record = TypeVar("Record")


@dataclass(frozen=True)
class PosedImage:
    """One picture as it was found, nothing decoded.

    image  its file, or the file that it lies in.
    lens   of the picture as stored.
    pose   (4, 4) camera-to-world.
    color  decodes the picture; its size is the lens's.
    depth  reads (h, w) float32 z-depth of the picture's camera, 0 = no reading; None where the source has none.
    """

    name: str
    image: Path
    lens: Lens
    pose: np.ndarray
    color: Callable[[], Image.Image]
    depth: Callable[[], np.ndarray] | None = None

    def load(self) -> Frame:
        """Decoded, and straightened where the lens distorts. No depth: a grid without readings.

        Raises Refusal when picture or depth cannot be read.
        """
        try:
            rgb = np.asarray(self.color())
        except ValueError as error:
            raise Refusal("unreadable colour", str(error)) from None
        if self.depth is None:
            return Frame(self.name, self.lens.straighten(rgb, 1), np.zeros(rgb.shape[:2], np.float32),
                         self.lens.k, self.lens.k, self.pose)  # fmt: skip
        try:
            depth = self.depth()
            lens = self.lens.resized(depth.shape[1], depth.shape[0])
        except ValueError as error:
            raise Refusal("unreadable depth", str(error)) from None
        return Frame(self.name, self.lens.straighten(rgb, 1), lens.straighten(depth, 0), self.lens.k, lens.k, self.pose)


def posed_image(
    name: str, image: Path, lens: Lens, pose: np.ndarray, depth: Callable[[], np.ndarray] | None = None
) -> PosedImage:
    """A picture in a file of its own; the lens is scaled to its real size. One that EXIF turns is turned where that
    gives it the lens's shape; else it stays as stored, which its pose is of.

    Raises Refusal: the pose is none, the file is missing or no picture, the lens is of one of another shape.
    """
    checked_pose(pose, name)
    if not image.is_file():
        raise Refusal("missing image", f"{image} does not exist")
    try:
        size, orientation = image_size(image), exif_orientation(image)
    except ValueError as error:
        raise Refusal("unreadable colour", str(error)) from None
    turned = orientation in QUARTER_TURNS and (size[0] > size[1]) != (lens.width > lens.height)
    if orientation not in (1, *QUARTER_TURNS) or (orientation != 1 and size[0] == size[1]):
        raise Refusal(
            "colour stored turned",
            f"{image} has EXIF orientation {orientation}, and its shape does not tell whether the pose is of the "
            "picture as stored; save it as the pose has it, without the tag",
        )
    try:
        lens = lens.resized(*(size[::-1] if turned else size))
    except ValueError as error:
        raise Refusal("intrinsics of another grid", f"{image} {error}") from None
    return PosedImage(name, image, lens, pose, partial(_decoded, image, turned), depth)


def _decoded(image: Path, turned: bool) -> Image.Image:
    stored, orientation = load_stored(image, str(image))
    return upright(stored, orientation) if turned else stored


def checked_pose(pose: np.ndarray, name: str) -> None:
    """Raise Refusal when a (4, 4) camera-to-world is not finite or no rotation."""
    try:
        as_transform(pose)
    except ValueError as error:
        raise Refusal("broken pose", f"{name}: {error}") from None


@dataclass(frozen=True)
class Landmarks:
    """3D points and the pictures that see them: P points, N sightings, ordered by view.

    points (P, 3); error (P,) pixels as the source says, NaN if it does not; point (N,) and view (N,) are indices into
    `points` and the scene's views; pixels (N, 2) of the straight picture.
    """

    points: np.ndarray
    error: np.ndarray
    point: np.ndarray
    view: np.ndarray
    pixels: np.ndarray

    def seen_by(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices (n,) of the points that a view sees, and where (n, 2)."""
        here = slice(*np.searchsorted(self.view, [view, view + 1]))
        return self.point[here], self.pixels[here]

    def shared(self, i: int, j: int) -> tuple[float, float]:
        """The share of the points that view i sees which view j sees too, and of those of j which i sees."""
        here, there = (np.unique(self.seen_by(view)[0]) for view in (i, j))
        both = len(np.intersect1d(here, there, assume_unique=True))
        return both / max(1, len(here)), both / max(1, len(there))

    @property
    def track_length(self) -> np.ndarray:
        """(P,) number of sightings of each point."""
        return np.bincount(self.point, minlength=len(self.points))


@dataclass(frozen=True)
class Tracks:
    """Points (P, 3) with errors (P,), and what each record of a source sees: indices (n,) into them, and places (n, 2)
    in shares of width and height of the picture as stored, (0, 0) its outer corner.
    """

    points: np.ndarray
    error: np.ndarray
    seen: list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class PosedScene:
    """Posed pictures of one place: a Scene. left_out: what could not be used, and why; up: (3,) or None.

    Frames are decoded when asked for, none is kept.
    """

    id: str
    form: str
    views: tuple[PosedImage, ...]
    left_out: tuple[Refusal, ...] = ()
    landmarks: Landmarks | None = None
    up: np.ndarray | None = None
    objects: tuple[SceneObject, ...] = ()

    def __len__(self) -> int:
        return len(self.views)

    def frame(self, index: int) -> Frame:
        """Frame `index`, decoded. Raises Refusal when its files cannot be read."""
        return self.views[index].load()

    @property
    def has_depth(self) -> bool:
        """Of any view."""
        return any(view.depth is not None for view in self.views)

    def scaled(self, factor: float) -> PosedScene:
        """The same scene with all lengths times this."""
        views = []
        for view in self.views:
            pose = view.pose.copy()
            pose[:3, 3] *= factor
            depth = None if view.depth is None else partial(_times, view.depth, factor)
            views.append(replace(view, pose=pose, depth=depth))
        landmarks = self.landmarks and replace(self.landmarks, points=self.landmarks.points * factor)
        return replace(self, views=tuple(views), landmarks=landmarks)

    def part(self, keep: np.ndarray) -> PosedScene:
        """The same scene with these of its views alone, by ascending index; landmarks as those views see them."""
        landmarks = self.landmarks
        if landmarks is not None:
            there = np.isin(landmarks.view, keep)
            view = np.searchsorted(keep, landmarks.view[there])
            landmarks = replace(landmarks, point=landmarks.point[there], view=view, pixels=landmarks.pixels[there])
        return replace(self, views=tuple(self.views[index] for index in keep), landmarks=landmarks)

    @property
    def poses(self) -> np.ndarray:
        """(V, 4, 4)."""
        return np.stack([view.pose for view in self.views])


def _times(depth: Callable[[], np.ndarray], factor: float) -> np.ndarray:
    return depth() * np.float32(factor)


def gather(
    form: str, path: Path, records: Iterable[Record], read: Callable[[Record], PosedImage],
    up: np.ndarray | None = None, tracks: Tracks | None = None,
) -> PosedScene:  # fmt: skip
    """The scene of a source's records: `read` makes each a picture, or raises Refusal and it is left out.

    Raises ValueError when none can be used, or landmarks do not project to where they are seen.
    """
    views: dict[int, PosedImage] = {}
    left_out: list[Refusal] = []
    number = -1
    for number, record in enumerate(records):
        try:
            views[number] = read(record)
        except Refusal as refusal:
            left_out.append(refusal)
    if not views:
        first = f"; the first: {left_out[0]}" if left_out else ""
        raise ValueError(f"{path} ({form}): none of its {number + 1} frames can be used{first}")
    landmarks = None if tracks is None else _landmarks(tracks, views, path)
    name = next(part for part in reversed(path.resolve().parts) if part not in WRAPPERS)
    return PosedScene(name, form, tuple(views.values()), tuple(left_out), landmarks, up)


def _landmarks(tracks: Tracks, views: dict[int, PosedImage], path: Path) -> Landmarks | None:
    points: list[np.ndarray] = []
    pixels: list[np.ndarray] = []
    off: list[np.ndarray] = []
    for number, view in views.items():
        point, place = tracks.seen[number]
        size = np.array([view.lens.width, view.lens.height])
        straight = view.lens.undistort(place * size - 0.5)
        inside = ((straight >= -0.5) & (straight <= size - 0.5)).all(axis=-1)
        points.append(point[inside])
        pixels.append(straight[inside])
        away = np.linalg.norm(view.lens.project(tracks.points[points[-1]], view.pose) - pixels[-1], axis=-1)
        off.append(np.nan_to_num(away, nan=np.inf) / view.lens.width)
    away = np.concatenate(off)
    if not away.size:
        return None
    if np.median(away) > FITS:
        raise ValueError(
            f"{path}: its points project {np.median(away):.2g} picture widths beside the pixels that see them "
            "(median); points, poses and intrinsics are not of one model, write them again together"
        )
    view_index = np.repeat(np.arange(len(points)), [len(point) for point in points])
    return Landmarks(tracks.points, tracks.error, np.concatenate(points), view_index, np.concatenate(pixels))
