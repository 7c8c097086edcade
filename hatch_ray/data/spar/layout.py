"""Where SPAR-7M keeps what, and which marks each task has: the published tree as tables.

ROOT/SOURCE/qa_jsonl/{train,val}/TASK/{fill,select,sentence,judge}/*.jsonl
ROOT/SOURCE/images/SCENE/{image_color,video_color}/FRAME.jpg
SPAR-7M-RGBD adds, beside them: {image_depth,video_depth}/FRAME.png, {pose,video_pose}/FRAME.txt,
intrinsic/intrinsic_{color,depth}.txt, video_idx.txt
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import yaml
from pydantic import TypeAdapter

from hatch_ray.sample import AnswerForm, MarkColor

SOURCES = ("scannet", "scannetpp", "structured3d", "rxr")
FORMATS = ("select", "fill", "sentence", "judge")
SPLITS = ("train", "val")

COLOR_FOLDERS = ("image_color", "video_color")
BESIDE_COLOR = {
    ("image_color", "depth"): "image_depth/{}.png", ("image_color", "pose"): "pose/{}.txt",
    ("video_color", "depth"): "video_depth/{}.png", ("video_color", "pose"): "video_pose/{}.txt",
}  # fmt: skip
"""Depth and pose files of each colour folder (SPAR-7M-RGBD)."""

UP = np.array([0.0, 0.0, 1.0])
"""World up of ScanNet, ScanNet++ and Structured3D."""
NAMED = re.compile(r"(scene\d{4})_\d{2}$")
"""A ScanNet scan: scans of one room differ in the last two digits only."""


@dataclass(frozen=True)
class Marks:
    """The marks of a task, as tasks.yaml says them; exactly: 0 means all colours."""

    kind: Literal["point", "bbox"]
    colors: tuple[MarkColor, ...]
    exactly: int = 0
    image: int | None = None


@dataclass(frozen=True)
class SparTask:
    """An image task, as tasks.yaml says it."""

    views: int
    fill: AnswerForm
    marks: Marks | None = None
    listed: bool = False


TASKS = TypeAdapter(dict[str, SparTask]).validate_python(
    yaml.safe_load((Path(__file__).parent / "tasks.yaml").read_text(encoding="utf-8"))
)


def answer_form(task: str, form: str) -> AnswerForm:
    """The form of a row's answer from its task and format; sentence and judge rows are free text."""
    if form == "select":
        return "letter"
    return TASKS[task].fill if form == "fill" else "text"


def chosen_tasks(names: list[str], views: str) -> list[str]:
    """The tasks named that have several views, one, or either ("multi", "single", "both").

    No names: all but spatial_imagination_map_mv, whose answers are sentences that no reward judges.

    Raises ValueError for a name that SPAR's image tasks do not have, and when none is left.
    """
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise ValueError(f"data.tasks: SPAR has no image task {unknown[0]!r}; known are {', '.join(sorted(TASKS))}")
    asked = names or [name for name, task in TASKS.items() if not task.listed]
    kept = [name for name in asked if views == "both" or (TASKS[name].views > 1) == (views == "multi")]
    if not kept:
        raise ValueError(f"none of data.tasks has data.spar.views={views}; name other tasks or set it to both")
    return kept


def scene_of(image: str) -> str:
    """ "scene0261_00/image_color/543.jpg" -> "scene0261_00": everything above the colour folder.

    Raises ValueError when the path is not below the images root, or has no colour folder with a scene above it.
    """
    parts = PurePosixPath(image).parts
    if not parts or image.startswith("/") or ".." in parts:
        raise ValueError(f"image path {image!r} does not lie below the images folder")
    if len(parts) < 3 or parts[-2] not in COLOR_FOLDERS:
        raise ValueError(f"image path {image!r} is not SCENE/image_color/FRAME or SCENE/video_color/FRAME")
    return "/".join(parts[:-2])


def beside(image: str, what: Literal["depth", "pose"]) -> str:
    """The published place of an image's depth or pose; both paths are below the images folder.

    "scene0261_00/image_color/543.jpg" -> "scene0261_00/image_depth/543.png", "scene0261_00/pose/543.txt".
    """
    path = PurePosixPath(image)
    return str(path.parents[1] / BESIDE_COLOR[path.parent.name, what].format(path.stem))


def space_of(scene: str) -> str:
    """The room that a scene shows: ScanNet's scene0261_00 and scene0261_01 are one room, "scene0261"."""
    found = NAMED.match(scene)
    return found[1] if found else scene


def heldout(room: str, seed: int, fraction: float) -> bool:
    """Whether a room is held out: a hash of its name and the seed lies in the first `fraction` of its range."""
    digest = blake2b(f"{seed}:{room}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


def spar_folder(root: Path) -> Path:
    """The folder that holds the sources: `root` itself or `root`/spar.

    Raises ValueError that says what was expected and what is there.
    """
    for place in (root, root / "spar"):
        if any((place / source / "qa_jsonl").is_dir() for source in SOURCES):
            return place
    if not root.is_dir():
        raise ValueError(f"data.root={root} is not a folder")
    found = ", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing"
    raise ValueError(
        f"{root} holds no SPAR-7M: expected one of {', '.join(f'{source}/qa_jsonl' for source in SOURCES)} in it or "
        f"in its folder spar/, found {found}; unpack the archives there (docs/spar.md)"
    )
