"""ReasonMatch-Bench (arXiv 2606.03577) in its published form: reasonmatch_bench.tar.gz of the hub's
ReasonMatch/ReasonMatch, unpacked.

annotation_index.json   list of {metadata, dataset_key, stage, sample_id or id, ..}; metadata names a file
metadata.json           {image1, image2, answer, viewA, viewB, meta}; pictures lie at what follows "testset/"; answer
                        maps numbers of the first to the second as text, matched pairs alone; a view's image_points and
                        text_points are its marks, which are drawn in the pictures; meta has overlap_rank
scene_labels.json       sample id -> {"scene": "indoor"}, of the authors' repository (evaluate/matchbench): copied
                        beside the index, it tells the scenes of all sources; else ScanNet is indoor, uCO3D an object

The paper counts 2,810 pairs, the authors' list of scenes 3,022: which were left out is not recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from hatch_ray.benchmarks.files import Row, decode_image, read_member
from hatch_ray.benchmarks.item import BadRowError, Item
from hatch_ray.data.images import ImageRefused, image_size
from hatch_ray.systems.matching.data import FORM, TASK, question_text
from hatch_ray.systems.matching.measures import Case

INDEX, ARCHIVE, SCENES = "annotation_index.json", "reasonmatch_bench.tar.gz", "scene_labels.json"
BELOW = "testset/"
INDEX_COLUMNS = ("metadata", "dataset_key", "stage")
COLUMNS = ("image1", "image2", "answer", "viewA", "viewB")
LEVELS = {"one_to_one": "L1", "one_to_multi": "L2", "multi_to_multi": "L3"}
SCENE_OF = {"uco3d": "object", "scannet": "indoor"}
RANKS = ((0.33, "low"), (0.66, "medium"))
"""Of meta.overlap_rank, the place of a pair's overlap among those of its source; from the last edge on it is high."""


def read_reasonmatch(paths: tuple[Path, ...]) -> Iterator[Item | BadRowError]:
    """The questions of an index. Raises ValueError where it is no such list, or lacks its columns in every row."""
    index = paths[0]
    if index.name != INDEX:
        raise ValueError(f"{index} is packed: unpack it (tar xzf {index.name}) and give its folder with --root")
    rows = _json(index)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{index} is no list of questions; unpack {ARCHIVE} again")
    names = sorted({name for row in rows if isinstance(row, dict) for name in row})
    if missing := [name for name in INDEX_COLUMNS if name not in names]:
        raise ValueError(f"{index} lacks the column(s) {', '.join(missing)}; it has {', '.join(names)}")
    scenes = _scenes(index.parent / SCENES)
    for number, row in enumerate(rows):
        try:
            yield _item(index.parent, row, number, scenes)
        except BadRowError as fault:
            yield fault


def _json(path: Path) -> Any:
    try:
        return json.loads(read_member(path, str(path)))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError(f"{path} is no JSON; unpack {ARCHIVE} again") from None


def _scenes(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    found = _json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} must map sample ids to scenes, as the authors' repository has it")
    return {
        name: str(value.get("scene", "unknown") if isinstance(value, dict) else value) for name, value in found.items()
    }


def _item(root: Path, row: Any, number: int, scenes: Mapping[str, str]) -> Item:
    if not isinstance(row, dict) or any(not isinstance(row.get(name), str) for name in INDEX_COLUMNS):
        raise BadRowError("index_row_without_columns", f"row {number} of {INDEX}")
    name = str(row.get("sample_id") or row.get("id") or number)
    file = _place(root, row["metadata"], "metadata_file_missing")
    try:
        found = _json(file)
    except ValueError:
        raise BadRowError("metadata_is_no_json", row["metadata"]) from None
    for column in COLUMNS:
        if not isinstance(found, dict) or column not in found:
            raise BadRowError(f"metadata_without_{column}", row["metadata"])
    photos = [_photo(root, found[column]) for column in ("image1", "image2")]
    case = _case(found, row["metadata"])
    source = row["dataset_key"]
    meta = found.get("meta") if isinstance(found.get("meta"), dict) else {}
    stage = str(meta.get("stage") or row["stage"])
    parts = {
        "source": source, "level": LEVELS.get(stage, stage), "overlap": _rank(meta.get("overlap_rank")),
        "scene": scenes.get(name) or SCENE_OF.get(source.lower(), "unknown"),
    }  # fmt: skip
    return Item(
        f"{number:05d}:{name}", TASK, source, FORM, question_text(len(case["gold"]), case["second"]), json.dumps(case),
        name, 2, partial(_load, photos), parts,
    )  # fmt: skip


def _place(root: Path, name: Any, reason: str) -> Path:
    """A file below the index's folder, or below testset/ in it."""
    below = str(name).rpartition(BELOW)[2].lstrip("/")
    for path in (root / below, root / BELOW / below):
        if below and path.is_file():
            return path
    raise BadRowError(reason, str(name))


def _photo(root: Path, name: Any) -> Path:
    path = _place(root, name, "image_file_missing")
    try:
        image_size(path)
    except ImageRefused as refusal:
        raise BadRowError(refusal.fault, str(name)) from None
    return path


def _load(photos: list[Path], max_pixels: int) -> list[Image.Image]:
    return [decode_image(read_member(path, str(path)), max_pixels) for path in photos]


def _case(found: Row, where: str) -> dict[str, Any]:
    """What `case_of_gold` takes back: the answer as published, and the partner of every mark."""
    first, second = (_marks(found[view], where) for view in ("viewA", "viewB"))
    answer, gold = found["answer"], [0] * first
    if not isinstance(answer, dict) or not answer:
        raise BadRowError("no_answer", where)
    for key, value in answer.items():
        if not (key.isdecimal() and str(value).isdecimal()):
            raise BadRowError("labels_are_no_numbers", where)
        if not (1 <= int(key) <= first and 1 <= int(value) <= second):
            raise BadRowError("answer_names_no_mark", where)
        gold[int(key) - 1] = int(value)
    return {"answer": {key: str(value) for key, value in answer.items()}, "gold": gold, "second": second}


def _marks(view: Any, where: str) -> int:
    """How many marks a view has."""
    points = [view.get(kind) for kind in ("image_points", "text_points")] if isinstance(view, dict) else []
    count = sum(len(each) for each in points if isinstance(each, list | dict))
    if not count:
        raise BadRowError("view_without_points", where)
    return count


def _rank(value: Any) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "unknown"
    return next((name for edge, name in RANKS if value < edge), "high")


def case_of_gold(gold: str, cluster: str = "", parts: Mapping[str, str] | None = None) -> Case:
    """The question of an item's gold, as it is measured."""
    held = json.loads(gold)
    return Case(held["answer"], tuple(held["gold"]), held["second"], cluster, parts or {})
