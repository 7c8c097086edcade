"""SPAR-Bench's tasks asked in generated held-out rooms: the same layout where no benchmark is at hand.

Numbers and view changes are asked as fill, the other tasks as select, as in SPAR-Bench. The figures are not
SPAR-Bench's: rooms are rendered, and the questions are this project's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from hatch_ray.benchmarks.item import BadRowError, Item
from hatch_ray.benchmarks.spar_scorers import KINDS
from hatch_ray.config_sections import DataConfig
from hatch_ray.data.build import build_dataset
from hatch_ray.data.questions import TASKS
from hatch_ray.data.store import is_dataset, model_images, read_dataset

SPLITS = ("fill", "select")


def _data(data: DataConfig, split: str, samples: int) -> DataConfig:
    """The config of one of the two datasets; each gets the samples of its number of tasks."""
    known = {task: "select" if kind == "choice" else "fill" for task, kind in KINDS.items() if task in TASKS}
    tasks = sorted(task for task, form in known.items() if form == split)
    share = max(len(tasks), round(samples * len(tasks) / len(known)))
    changes = {"kind": "rooms", "root": None, "tasks": tasks, "formats": [split], "heldout_samples": share}
    return DataConfig.model_validate(data.model_dump() | changes)


def build_rooms(
    data: DataConfig, seed: int, samples: int, folder: Path, progress: Callable[[int, int], None] | None = None
) -> tuple[Path, ...]:
    """The two datasets below `folder`, built unless they are there.

    Raises ValueError when those that are there were built for another number of samples.
    """
    for split in SPLITS:
        wanted = _data(data, split, samples)
        if not is_dataset(folder / split):
            build_dataset(wanted, seed, "heldout", folder / split, progress)
        summary = json.loads((folder / split / "summary.json").read_text(encoding="utf-8"))
        if summary["asked_for"] != wanted.heldout_samples:
            raise ValueError(
                f"{folder / split} was built for {summary['asked_for']} samples, eval.samples={samples} asks for "
                f"{wanted.heldout_samples}; remove {folder.parent} to build and ask again"
            )
    return tuple(folder / split for split in SPLITS)


def read_rooms(paths: tuple[Path, ...]) -> Iterator[Item | BadRowError]:
    """The items of both datasets; marks are drawn when an image is loaded."""
    for path in paths:
        for sample in read_dataset(path):
            yield Item(
                f"{path.name}:{sample.id}", sample.task, sample.task, sample.answer_form, sample.question,
                sample.answer, sample.scene, len(sample.views), partial(model_images, sample),
            )  # fmt: skip
