"""The rows of the published tree: drawn at random through its index, their files checked and linked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hatch_ray.config_sections import DataConfig
from hatch_ray.data.camera_files import check_grid, load_pose
from hatch_ray.data.geometry_check import words_or_refusal
from hatch_ray.data.images import load_depth, load_image, save_depth
from hatch_ray.data.refusals import Refusal
from hatch_ray.data.spar.index import open_index
from hatch_ray.data.spar.layout import FORMATS, SOURCES, SPLITS, beside, chosen_tasks, heldout, space_of, spar_folder
from hatch_ray.data.spar.leave_out import LeftOut
from hatch_ray.data.spar.record import Record
from hatch_ray.data.spar.views import (
    depth_in_metres,
    has_rgbd,
    link_file,
    pose_in_metres,
    spar_scenes,
    stored_intrinsics,
)
from hatch_ray.data.unique import UniqueNames
from hatch_ray.geometry.convention import Convention
from hatch_ray.sample import View


class TreeRows:
    """Rows of the published tree, through its index. rgbd: whether views have depth and poses."""

    def __init__(self, data: DataConfig, seed: int, split: str, folder: Path) -> None:
        assert data.root is not None
        self.data, self.seed, self.split, self.folder = data, seed, split, folder
        self.root = spar_folder(data.root)
        self.index = open_index(self.root, data.spar.index or self.root / "hatch-index")
        self.rgbd = has_rgbd(self.root, list(data.spar.sources))
        self._convention = Convention.parse(data.convention)
        self._scenes, self._files = UniqueNames(), UniqueNames()
        self._made: dict[tuple[str, str], View] = {}
        self.geometry: list[str] = []
        if self.rgbd and data.check_geometry:
            self.geometry = words_or_refusal(spar_scenes(self.root, data.spar.sources), self._convention, data.root)
        self.counts: dict[str, int] = {"rows_indexed": len(self.index)}

    def draw(self) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
        """(where, source, format, record) of every row that may be used, in an order by the seed and the split."""
        rows = self._candidates()
        order = np.random.default_rng([self.seed, self.split == "heldout"]).permutation(len(rows))
        for position in order:
            row = int(rows[position])
            entry = self.index.rows[row]
            source, form = SOURCES[entry["source"]], FORMATS[entry["format"]]
            yield self.index.where(row), source, form, self.index.record(row)

    def views(self, source: str, raw: dict[str, Any], record: Record) -> tuple[View, ...]:
        """The record's views, each checked and linked into the dataset's folder once. Raises Refusal."""
        for image, depth in zip(record.images, record.depths or (None,) * len(record.images), strict=True):
            if (source, image) not in self._made:
                self._made[source, image] = self._make(source, image, depth)
        return tuple(self._made[source, image] for image in record.images)

    def scene(self, source: str, record: Record) -> str:
        """The name of the record's scene, which no other scene has."""
        return self._scenes.scene(source, record.scene)

    def check(self) -> None:
        """Some scenes were looked at when the tree was opened."""

    def summary(self) -> dict[str, Any]:
        """What was read and left out."""
        found = {"geometry": self.geometry, "refused_lines": self.index.refused}
        return {"root": str(self.data.root), **self.counts, **found}

    def _make(self, source: str, image: str, depth: str | None) -> View:
        """depth: the record's depth path; None takes the published place beside the image."""
        images = self.root / source / "images"
        path = images / image
        if not path.is_file():
            raise Refusal("missing_image", f"{path} does not exist")
        try:
            size = load_image(path).size
        except ValueError as error:
            raise Refusal("unreadable_image", str(error)) from None
        relative = PurePosixPath(image)
        scene = self._scenes.scene(source, "/".join(relative.parts[:-2]))
        prefix = "video-" if relative.parts[-2] == "video_color" else ""
        stem = self._files.of((source, image), f"{scene}/{prefix}{relative.stem}").rpartition("/")[2]
        target = Path("images") / scene / f"{stem}{relative.suffix}"
        if not self.rgbd:
            link_file(path, self.folder / target)
            return View(target)
        pose = load_pose(images / beside(image, "pose"), self._convention)
        depth_path = images / (depth or beside(image, "depth"))
        if not depth_path.is_file():
            raise Refusal("missing_depth", f"{depth_path} does not exist")
        try:
            stored = load_depth(depth_path) * np.float32(self._convention.depth)
        except ValueError as error:
            raise Refusal("unreadable_depth", str(error)) from None
        metres, rescaled = depth_in_metres(stored, source, str(depth_path))
        folder, depth_size = images.joinpath(*relative.parts[:-2]), (metres.shape[1], metres.shape[0])
        color_k, depth_k = stored_intrinsics(folder, size, depth_size)
        color_k = self._convention.intrinsics(color_k, *size, (depth_size[0],))
        depth_k = self._convention.intrinsics(depth_k, *depth_size, (size[0],))
        check_grid(color_k, *size, f"colour of {folder}")
        check_grid(depth_k, *depth_size, f"depth of {folder}")
        depth_target = Path("depth") / scene / f"{stem}.png"
        link_file(path, self.folder / target)
        if rescaled or self._convention.depth != 1:
            save_depth(self.folder / depth_target, metres)
        else:
            link_file(depth_path, self.folder / depth_target)
        return View(target, depth_target, color_k, depth_k, pose_in_metres(pose, source))

    def _candidates(self) -> np.ndarray:
        """Numbers of the rows of this split that the config asks for, without copies of the same line."""
        data, index, rows = self.data, self.index, self.index.rows
        tasks = chosen_tasks(data.tasks, data.spar.views)
        chosen = (
            _among(rows["task"], index.tasks, tasks)
            & _among(rows["source"], SOURCES, data.spar.sources)
            & _among(rows["format"], FORMATS, data.spar.formats)
            & (rows["split"] == SPLITS.index("train"))
            & (rows["views"] <= data.max_views)
        )
        self.counts["rows_asked_for"] = int(chosen.sum())
        rooms = [space_of(scene) for scene in index.scenes]
        left_out = LeftOut(data.spar.leave_out)
        shown: set[str] = set()
        if data.spar.leave_out_val:
            shown = {rooms[scene] for scene in np.unique(rows["scene"][rows["split"] == SPLITS.index("val")])}
        allowed = np.array(
            [scene not in left_out and room not in shown for scene, room in zip(index.scenes, rooms, strict=True)],
            dtype=bool,
        )
        side = np.array([heldout(room, self.seed, data.heldout_fraction) for room in rooms], dtype=bool)
        chosen &= allowed[rows["scene"]]
        self.counts["scenes_left_out"] = int((~allowed).sum())
        self.counts["rows_after_leaving_out"] = int(chosen.sum())
        chosen &= side[rows["scene"]] == (self.split == "heldout")
        numbers = np.flatnonzero(chosen)
        _, first = np.unique(rows["digest"][numbers], return_index=True)
        self.counts["copies_of_the_same_line"] = len(numbers) - len(first)
        self.counts["rows_to_draw_from"] = len(first)
        return numbers[np.sort(first)]


def _among(column: np.ndarray, names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Which entries' numbers stand for a wanted name."""
    return np.isin(column, [number for number, name in enumerate(names) if name in wanted])
