"""SPAR rows from a dataset on the Hugging Face hub, streamed through `datasets`.

A row is a record of the published form with its format as a field (`format`, or `format_type` as in SPAR-Bench), since
folders are lost in such a table. Its images are pictures, not paths, below `image` or `images`; marks may also stand
as JSON in `spar_info`; `question`, `answer` and `task` may stand for `conversations` and `type`. `depth` (pictures),
`pose`, `intrinsic_color` and `intrinsic_depth` (16 numbers each) give depth and poses where they are there.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hatch_ray.config_sections import DataConfig
from hatch_ray.data.camera_files import check_grid
from hatch_ray.data.geometry_check import SceneVerdict, refuse_misread
from hatch_ray.data.images import (
    FORMATS,
    MILLIMETRES,
    ImageRefused,
    decoded_upright,
    image_hash,
    load_upright,
    save_depth,
    save_image,
)
from hatch_ray.data.refusals import Refusal
from hatch_ray.data.spar.layout import chosen_tasks, heldout, space_of
from hatch_ray.data.spar.leave_out import LeftOut
from hatch_ray.data.spar.record import Record
from hatch_ray.data.spar.views import depth_in_metres, pose_in_metres
from hatch_ray.data.unique import UniqueNames
from hatch_ray.geometry.agreement import Pairs, StoredView, judge
from hatch_ray.geometry.convention import Convention
from hatch_ray.geometry.se3 import as_transform
from hatch_ray.sample import View

PAIRS_CHECKED = 24
"""Pairs of views whose geometry is compared, at the start and every few hundred rows."""
SHUFFLE_BUFFER = 1000
"""Rows held while shuffling (each with its pictures): the order is random within this reach and over the shards."""


def open_stream(name: str) -> Any:
    """The train split of a dataset as a stream. Raises ValueError when the hub or the dataset cannot be reached."""
    import datasets

    try:
        return datasets.load_dataset(name, split="train", streaming=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"data.spar.hub={name} cannot be opened ({type(error).__name__}: {error}); check the name and the network, "
            "or unpack the archives and give data.root"
        ) from None


class HubRows:
    """Rows of a stream that the config asks for. `folder` gets the pictures, named by their content."""

    def __init__(self, data: DataConfig, seed: int, split: str, folder: Path) -> None:
        self.data, self.seed, self.split, self.folder = data, seed, split, folder
        self.rgbd = False
        self._stream = open_stream(data.spar.hub)
        self._counts: Counter[str] = Counter()
        self._scenes = UniqueNames()
        self._convention = Convention.parse(data.convention)
        self._stored: list[StoredView] = []
        self._pairs: list[tuple[int, int]] = []

    def draw(self) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
        """(where, source, format, record) in the stream's shuffled order. Raises ValueError when formats are lost."""
        data = self.data
        tasks = set(chosen_tasks(data.tasks, data.spar.views))
        left_out = LeftOut(data.spar.leave_out)
        for number, row in enumerate(self._stream.shuffle(seed=self.seed, buffer_size=SHUFFLE_BUFFER)):
            self._counts["rows_streamed"] += 1
            raw = plain_record(row)
            form = raw.get("format") or raw.get("format_type")
            if not form:
                raise ValueError(
                    f"{data.spar.hub}: a row has no field format or format_type, so its answer's form is unknown; "
                    "keep the folder's name (fill, select, ...) as that field"
                )
            source = str(raw.get("source") or "hub")
            scene = _scene(raw)
            wanted = (
                raw.get("type") in tasks
                and form in data.spar.formats
                and (source == "hub" or source in data.spar.sources)
                and len(raw["pictures"]) <= data.max_views
            )
            if not wanted:
                self._counts["rows_not_asked_for"] += 1
            elif scene in left_out:
                self._counts["rows_of_scenes_left_out"] += 1
            elif heldout(space_of(scene), self.seed, data.heldout_fraction) == (self.split == "heldout"):
                names = [f"{scene}/image_color/{number}-{view}.png" for view in range(len(raw["pictures"]))]
                yield f"row {number} of the stream", source, form, raw | {"image": names, "depth": None}

    def views(self, source: str, raw: dict[str, Any], record: Record) -> tuple[View, ...]:
        """Write the record's pictures. Raises Refusal."""
        views = []
        self._seen: list[StoredView] = []
        for index, item in enumerate(raw["pictures"]):
            picture = _picture(item, f"{index} of the row")
            place = Path(self.scene(source, record)) / f"{image_hash(picture)}.png"
            if not (self.folder / "images" / place).exists():
                save_image(self.folder / "images" / place, np.asarray(picture))
            views.append(self._with_depth(View(Path("images") / place), source, raw, index, place, picture.size))
        if self._seen and len(self._pairs) < PAIRS_CHECKED:
            first = len(self._stored)
            self._stored += self._seen
            self._pairs += combinations(range(first, len(self._stored)), 2)
        return tuple(views)

    def scene(self, source: str, record: Record) -> str:
        return self._scenes.scene(source, record.scene)

    def _with_depth(
        self, view: View, source: str, raw: dict[str, Any], index: int, place: Path, size: tuple[int, int]
    ) -> View:
        """size: (width, height) of the picture."""
        depths, poses = raw["depths"], raw.get("pose")
        if not depths or not poses:
            return view
        self.rgbd = True
        try:
            stored_pose = _matrix(poses, index)
            pose = self._convention.pose(stored_pose)
            as_transform(pose)
            color_k = _matrix(raw["intrinsic_color"], index)[:3, :3]
            depth_k = _matrix(raw.get("intrinsic_depth") or raw["intrinsic_color"], index)[:3, :3]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise Refusal("broken_pose", f"{type(error).__name__}: {error}") from None
        millimetres = np.asarray(_depth(depths[index], index)).astype(np.float32)
        stored = millimetres * np.float32(self._convention.depth / MILLIMETRES)
        metres, _ = depth_in_metres(stored, source, f"depth of view {index}")
        # Named by its content as well: a picture may come with another depth in another row.
        digest = hashlib.blake2b(metres.tobytes(), digest_size=8).hexdigest()
        place = place.with_name(f"{place.stem}-{digest}.png")
        save_depth(self.folder / "depth" / place, metres)
        height, width = metres.shape
        self._seen.append(StoredView(place.name, metres / np.float32(self._convention.depth), depth_k, stored_pose))
        color_k = self._convention.intrinsics(color_k, *size, (width,))
        depth_k = self._convention.intrinsics(depth_k, width, height, size[:1])
        check_grid(color_k, *size, f"colour of view {index}")
        check_grid(depth_k, width, height, f"depth of view {index}")
        return View(view.image_path, Path("depth") / place, color_k, depth_k, pose_in_metres(pose, source))

    def check(self) -> None:
        if self.data.check_geometry and self._pairs:
            verdict = judge(Pairs(self._stored, self._pairs), self._convention)
            refuse_misread([SceneVerdict("the stream's rows", verdict)], self.data.spar.hub)
        self._stored, self._pairs = [], []

    def summary(self) -> dict[str, Any]:
        return {"hub": self.data.spar.hub, **self._counts}


def plain_record(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a flattened table as a published record, with its pictures under "pictures" and "depths"."""
    raw = dict(row)
    info = raw.pop("spar_info", None)
    if isinstance(info, str):
        raw |= json.loads(info)
    raw["pictures"] = raw.pop("image", None) or raw.pop("images", None) or []
    raw["depths"] = raw.pop("depth", None)
    raw.setdefault("type", raw.get("task"))
    if "conversations" not in raw:
        raw["conversations"] = [
            {"from": "human", "value": raw.get("question")},
            {"from": "gpt", "value": raw.get("answer")},
        ]
    return raw


def _scene(raw: dict[str, Any]) -> str:
    """The scene of a row's id: all but its number."""
    name = str(raw.get("id") or "")
    return name.rpartition("_")[0] or name or "unknown"


def _picture(item: Any, name: str) -> Image.Image:
    """A photo as it is to be seen, as RGB, of a decoded picture or of the bytes of one. Raises Refusal."""
    try:
        if isinstance(item, Image.Image):
            return decoded_upright(item, name)
        return load_upright(_bytes(item), name)
    except ImageRefused as refusal:
        raise Refusal(refusal.fault, str(refusal)) from None


def _bytes(item: Any) -> bytes:
    data = item.get("bytes") if isinstance(item, dict) else item
    if not isinstance(data, bytes):
        raise Refusal("no_picture", f"an image is {type(item).__name__}; pictures are needed, paths need data.root")
    return data


def _depth(item: Any, index: int) -> Image.Image:
    """A decoded depth picture, whatever its mode. Raises Refusal."""
    if isinstance(item, Image.Image):
        return item
    try:
        picture = Image.open(io.BytesIO(_bytes(item)), formats=FORMATS)
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Refusal("unreadable_depth", f"depth of view {index}: {error}") from None
    return picture


def _matrix(values: Any, index: int) -> np.ndarray:
    """(4, 4) of one view: a list of matrices or of 16 numbers a view, or one of either for all views."""
    flat = np.array(values, dtype=float).reshape(-1, 16)
    return flat[index if len(flat) > 1 else 0].reshape(4, 4)
