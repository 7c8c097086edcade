"""A dataset as a run reads it: its samples from disk, which of them each step takes, and what the model sees of one.

One folder, whole or absent (`data.writer` makes it):

DATASET/images/SCENE/000007.png   colour, lossless, without marks
DATASET/depth/SCENE/000007.png    16-bit, millimetres, 0 = no reading
DATASET/index.jsonl               one sample a line; file names relative to DATASET
DATASET/scenes.json               per scene: world up and object boxes (for plans from above)
DATASET/summary.json              counts by task, refused views by reason, seed, version
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from PIL import Image

from hatch_ray.config import Config, ConfigError
from hatch_ray.config_sections import Trained
from hatch_ray.data.images import load_image, shrink
from hatch_ray.data.markers import draw_marks
from hatch_ray.data.rows import checked_rows
from hatch_ray.data.scene import SceneObject
from hatch_ray.sample import ActionFrame, Mark, PairPlan, Sample, View

T = TypeVar("T")
Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

# --- samples ----------------------------------------------------------------------------------------------------


def is_dataset(path: str | Path) -> bool:
    """Whether the folder holds one split (`index.jsonl`), or both (`train/` and `heldout/`)."""
    path = Path(path)
    return (path / "index.jsonl").is_file() or all((path / split / "index.jsonl").is_file() for split in SPLITS)


def built_root(root: Path | None) -> Path | None:
    """The root of a data section where it holds built datasets; None where a run builds its own in its folder."""
    return root if root is not None and is_dataset(root / "train") else None


def read_dataset(path: str | Path) -> list[Sample]:
    """All samples of one split, with absolute paths; no pixels are loaded.

    Raises ValueError when the folder or its index is missing, empty, or holds lines that are not samples (the first ten
    faults with line, field and value).
    """
    path = Path(path).expanduser().absolute()
    if not path.is_dir():
        raise ValueError(f"dataset {path} does not exist; make one with `hatch data build`")
    index = path / "index.jsonl"
    if not index.is_file() and is_dataset(path):
        raise ValueError(f"{path} holds two datasets, train and heldout; name one of them")
    if not index.is_file():
        raise ValueError(f"{path} is not a dataset (no index.jsonl); make one with `hatch data build`")
    samples = [row_to_sample(row, path) for row in checked_rows(index)]
    if not samples:
        raise ValueError(f"dataset {path} is empty; build it again with more scenes or wider overlap")
    return samples


def read_scenes(path: str | Path) -> dict[str, tuple[np.ndarray | None, tuple[SceneObject, ...]]]:
    """scene id -> (up, objects) of a dataset; scenes that were not recorded are absent."""
    file = Path(path) / "scenes.json"
    if not file.is_file():
        return {}
    return {
        name: (
            None if scene["up"] is None else np.array(scene["up"]),
            tuple(
                SceneObject(**thing | {key: np.array(thing[key]) for key in ("center", "size")})
                for thing in scene["objects"]
            ),
        )
        for name, scene in json.loads(file.read_text(encoding="utf-8")).items()
    }


MATRICES = ("intrinsics", "depth_intrinsics", "pose")


def row_to_sample(row: dict[str, Any], root: Path) -> Sample:
    """The inverse of `sample_to_row` for a row that was checked (`rows`); file names become absolute below `root`."""
    views = (
        View(
            root / view["image"], root / view["depth"] if view["depth"] else None,
            *(None if view[name] is None else np.array(view[name], dtype=float) for name in MATRICES),
        )
        for view in row["views"]
    )  # fmt: skip
    plans = (
        PairPlan(
            plan["source"], plan["target"], tuple((name, float(value)) for name, value in plan["atoms"]),
            ActionFrame(**plan["frame"]) if plan["frame"] else None, plan["residual_deg"],
        )
        for plan in row["plans"]
    )  # fmt: skip
    parts = {"views": tuple(views), "marks": tuple(map(Mark.from_row, row["marks"])), "plans": tuple(plans)}
    return Sample(**{field.name: row[field.name] for field in fields(Sample)} | parts)


# --- order: all follows from seed and step, so that resume is exact ---------------------------------------------


class SampleOrder:
    """An endless order over `count` samples: each epoch a new permutation, steps of `per_step` without a gap."""

    def __init__(self, count: int, per_step: int, seed: int) -> None:
        if count < 1:
            raise ValueError("there are no samples to train on")
        self.count, self.per_step, self.seed = count, per_step, seed

    def indices(self, step: int) -> list[int]:
        """The samples of a step, counted from 0."""
        places = range(step * self.per_step, (step + 1) * self.per_step)
        epochs = {place // self.count for place in places}
        orders = {epoch: np.random.default_rng([self.seed, epoch]).permutation(self.count) for epoch in epochs}
        return [int(orders[place // self.count][place % self.count]) for place in places]


class Sampler(Protocol):
    """Which samples each step of GRPO asks."""

    @property
    def known(self) -> Sequence[Sample]:
        """The samples that it may give, or some like them: they are checked before the stage starts (length, images),
        and its epochs count by them.
        """

    def samples(self, step: int) -> list[Sample]:
        """The `grpo.prompts_per_step` samples of a step (from 0). Called once a step, in order."""

    def observe(self, step: int, groups: Sequence[Mapping[str, Any]]) -> None:
        """What the groups of a step earned: rows of the ledger, {"id", "place", "version", "terms": {.., "total"}}.

        Called once a step, in order, before `samples` of the next one. A resumed run is told all steps again, so what
        a sampler knows must come from here, from the config and from the seed alone. With grpo.max_staleness k, a step
        may have been sampled with weights k versions old ("version"). With grpo.redraw a step has more groups than
        places: those without variance come first, then what was drawn for their places ("draw": 1, 2, ..).
        """


@runtime_checkable
class Redraws(Sampler, Protocol):
    """A sampler that grpo.redraw can ask for more."""

    def others(self, step: int, draw: int, asked: Collection[str], count: int) -> list[Sample]:
        """Up to `count` samples whose ids are not among those that the step has asked; draw: 1, 2, .. of the step.

        Called after `samples` and before `observe` of the step. It must not change what the sampler knows: a step that
        is done again asks again, and gets the same.
        """


class Shuffled:
    """Every sample once an epoch, in an order that follows from the seed: grpo.fraction of them. What is drawn again
    comes at random from all of them, and leaves the order as it is.
    """

    def __init__(self, config: Config, samples: Sequence[Sample]) -> None:
        """Raises ConfigError where there are no others for grpo.redraw."""
        self.known: Sequence[Sample] = share_of(samples, config.grpo.fraction, config.seed)
        per_step, self._seed = config.grpo.prompts_per_step, config.seed
        if config.grpo.redraw and len(self.known) <= per_step:
            raise ConfigError(
                f"grpo.redraw={config.grpo.redraw} draws samples that a step has not asked, but a step asks "
                f"{per_step} and there are {len(self.known)}: set grpo.redraw=0, or raise data.samples or grpo.fraction"
            )
        self._order = SampleOrder(len(self.known), per_step, config.seed)

    def samples(self, step: int) -> list[Sample]:
        return [self.known[index] for index in self._order.indices(step)]

    def others(self, step: int, draw: int, asked: Collection[str], count: int) -> list[Sample]:
        order = np.random.default_rng([self._seed, step, draw]).permutation(len(self.known))
        return list(islice((self.known[i] for i in order if self.known[i].id not in asked), count))

    def observe(self, step: int, groups: Sequence[Mapping[str, Any]]) -> None:
        """The order does not depend on rewards."""


def share_of(samples: Sequence[T], fraction: float, seed: int) -> list[T]:
    """A seeded share of the samples, in their order; one at least."""
    count = max(1, round(fraction * len(samples)))
    order = np.random.default_rng([seed, len(samples)]).permutation(len(samples))
    return [samples[index] for index in sorted(order[:count])]


def stage_steps(settings: Trained, samples: int, per_step: int) -> int:
    """Optimizer steps of a stage: max_steps where it is set, else by epochs; the last step is filled from the next one.

    samples: those that an epoch has; per_step: those that a step takes.
    """
    return settings.max_steps or math.ceil(settings.epochs * samples / per_step)


# --- pixels -----------------------------------------------------------------------------------------------------


def model_image(sample: Sample, index: int, max_pixels: int) -> Image.Image:
    """What the model sees of one view: its marks drawn at native resolution, then scaled down to `max_pixels`."""
    marks = [mark for mark in sample.marks if mark.view == index]
    return shrink(draw_marks(load_image(sample.views[index].image_path), marks), max_pixels)


def model_images(sample: Sample, max_pixels: int) -> list[Image.Image]:
    """`model_image` of every view, in order.

    The files on disk stay unmarked: PaStA and depth use those. Raises ValueError when a file cannot be read or a mark
    names a view that the sample does not have.
    """
    for mark in sample.marks:
        if not 0 <= mark.view < len(sample.views):
            raise ValueError(f"sample {sample.id} marks view {mark.view} but has {len(sample.views)} views")
    return [model_image(sample, index, max_pixels) for index in range(len(sample.views))]
