"""Wide-baseline matching on views made here: rendered held-out rooms (matching_rooms), posed RGB-D (matching_rgbd).

The questions are those of the system matching, every mark proven by depth, on scenes that the run was not trained on;
nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hatch_ray.benchmarks.files import choose_root
from hatch_ray.benchmarks.item import BadRowError, Item
from hatch_ray.config import Config
from hatch_ray.config_sections import DataConfig
from hatch_ray.data.store import is_dataset, model_images, read_dataset
from hatch_ray.systems.matching.compare import case_of
from hatch_ray.systems.matching.data import build_matching

SCENES = {"matching_rooms": "rooms", "matching_rgbd": "rgbd"}
"""Name -> data.kind."""


def build_scenes(
    name: str, config: Config, roots: Sequence[str], folder: Path, progress: Callable[[int, int], None] | None = None
) -> tuple[Path, ...]:
    """The dataset at `folder`, built unless it is there: eval.samples questions about held-out views.

    Raises ValueError without frames, and when what is there was built for other samples or frames.
    """
    data = _data(name, config, roots)
    if not is_dataset(folder):
        build_matching(data, config.seed, "heldout", folder, config.model.max_pixels, progress)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    before = summary["asked_for"], summary["data"]["root"]
    if before != (now := (data.heldout_samples, None if data.root is None else str(data.root))):
        raise ValueError(
            f"{folder} was built for eval.samples={before[0]} and the frames {before[1]}, now they are {now[0]} and "
            f"{now[1]}; remove {folder.parent} to build and ask again"
        )
    return (folder,)


def _data(name: str, config: Config, roots: Sequence[str]) -> DataConfig:
    data = config.data
    root: str | Path | None = None
    if SCENES[name] == "rgbd":
        root = choose_root(name, roots) or (data.root if data.kind == "rgbd" else None)
        if root is None or is_dataset(root):
            raise ValueError(f"{name} needs posed RGB-D frames: give --root {name}=FOLDER (docs/data.md)")
    changes: dict[str, Any] = {"kind": SCENES[name], "root": root, "tasks": [], "heldout_samples": config.eval.samples}
    return DataConfig.model_validate(data.model_dump() | changes)


def read_scenes(paths: tuple[Path, ...]) -> Iterator[Item | BadRowError]:
    """The items of the dataset; marks are drawn when an image is loaded."""
    for sample in read_dataset(paths[0]):
        case = case_of(sample, sample.scene)
        gold = json.dumps({"answer": dict(case.answer), "gold": list(case.gold), "second": case.second})
        yield Item(
            sample.id, sample.task, str(sample.meta["source"]), sample.answer_form, sample.question, gold, sample.scene,
            len(sample.views), partial(model_images, sample), dict(case.parts),
        )  # fmt: skip
