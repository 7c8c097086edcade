"""Datasets of wide-baseline matching from scenes of posed pictures: rendered rooms, recordings, published forms.

Each view pair gives a question of every level and spread, so that every kind has as many at every overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np

from hatch_ray.config_sections import DataConfig
from hatch_ray.data.build import Progress
from hatch_ray.data.numbered import thousandth
from hatch_ray.data.pairs import Refused
from hatch_ray.data.refusals import Refusal
from hatch_ray.data.scene import Scene
from hatch_ray.data.store import SPLITS, Split
from hatch_ray.data.writer import DatasetWriter
from hatch_ray.sample import Mark, Sample, View
from hatch_ray.systems.matching.epipolar import fundamental
from hatch_ray.systems.matching.ground import ground_of
from hatch_ray.systems.matching.pools import Pool, Thinned
from hatch_ray.systems.matching.prompt import question_text
from hatch_ray.systems.matching.questions import LEVELS, SPREADS, Asked, Marker
from hatch_ray.systems.matching.reply import write_pairs
from hatch_ray.systems.matching.sized import SceneRefused, SizedScene, check_size, views_of
from hatch_ray.systems.matching.stored import Making, Stored, StoredPools

TASK, FORM = "wide_baseline_matching", "matching"
GENERATOR = "matching-v1"
KINDS = list(product(LEVELS, SPREADS))
TRIES = 4
"""Draws of a kind of question, before its view pair is given up."""


def build_matching(
    data: DataConfig, seed: int, split: Split, out: str | Path, max_pixels: int, progress: Progress | None = None,
    pools: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the split's dataset to `out` and return its summary.

    max_pixels: of `model.max_pixels`; marks are drawn for pictures that the model sees at their own size. pools: a
    folder of view pairs with their matches (`stored`), of the same data. Raises ValueError when no question can be
    made, for data that cannot give any, and when `out` exists.
    """
    known = None if pools is None else StoredPools(pools, Making(data, seed, max_pixels))
    if data.tasks not in ([], [TASK]):
        raise ValueError(f"the system matching has the task {TASK} alone; leave data.tasks out")
    wanted = data.samples if split == "train" else data.heldout_samples
    with DatasetWriter(out) as writer:
        scenes, source = views_of(data, seed, split, max_pixels)
        builder = _Builder(data, seed, split, wanted, max_pixels, writer, progress)
        for position, scene in enumerate(scenes):
            pairs = -(-(wanted - len(writer)) // len(KINDS))
            stored = None if known is None else known.of(split, position)
            try:
                builder.use(scene(), position, -(-pairs // (len(scenes) - position)), stored)
            except SceneRefused as refused:
                builder.left_out.append(str(refused))
        if not len(writer):
            reasons = ", ".join(f"{count} {reason}" for reason, count in builder.refused.most_common(4))
            raise ValueError(f"no question could be made for {split} ({reasons}); widen data.min_overlap/max_overlap")
        writer.summary = builder.summary() | source
        return writer.summary


class _Builder:
    """Writes questions pair by pair; counts what was refused and why."""

    def __init__(
        self, data: DataConfig, seed: int, split: Split, wanted: int, max_pixels: int, writer: DatasetWriter,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.data, self.seed, self.split, self.wanted, self.max_pixels = data, seed, split, wanted, max_pixels
        self.writer, self.progress = writer, progress
        self.refused: Counter[str] = Counter()
        self.left_out: list[str] = []
        self.pairs = 0
        self._photos: dict[tuple[str, int], View] = {}

    def use(self, scene: Scene, position: int, pairs: int, stored: Sequence[Stored] | None) -> None:
        """Ask about so many view pairs of a scene, or as many as it gives; either view may be the first.

        stored: its pairs with their matches; None: all pairs of views, which are matched here.
        """
        draw = [self.seed, SPLITS.index(self.split), position]
        for i, j, thin in _pairs(scene, stored, np.random.default_rng(draw)):
            if pairs <= 0 or len(self.writer) >= self.wanted:
                return
            try:
                made = list(self._ask(scene, i, j, thin, [*draw, i, j]))
            except (Refused, Refusal) as refusal:
                self.refused[refusal.reason.replace(" ", "_")] += 1
                continue
            pairs, self.pairs = pairs - 1, self.pairs + 1
            for sample in made[: self.wanted - len(self.writer)]:
                self.writer.add(sample)
                self.writer.add_scene(scene.id, scene.up, scene.objects)
                if self.progress:
                    self.progress(len(self.writer), self.wanted)

    def _ask(self, scene: Scene, i: int, j: int, thin: Thinned | None, draw: list[int]) -> Iterator[Sample]:
        """A question of each kind about two views. Raises Refused where one cannot be made."""
        low, high = self.data.min_overlap, self.data.max_overlap
        if thin is not None and not low <= thin.omega[0] <= high:
            raise Refused("overlap_out_of_range")
        ground = ground_of(scene, i, j)
        frames = first, second = ground.first, ground.second
        height, width = first.rgb.shape[:2]
        check_size(first, self.max_pixels)
        pool: Pool | Thinned = thin or ground.pool()
        if not low <= pool.omega[0] <= high:
            raise Refused("overlap_out_of_range")
        marker = Marker(first, second, pool, ground)
        asked = [self._draw(marker, level, how, [*draw, kind]) for kind, (level, how) in enumerate(KINDS)]
        views = tuple(self._photo(scene, k, frame.rgb) for k, frame in zip((i, j), frames, strict=True))
        source = f"{scene.form}-{ground.by}" if isinstance(scene, SizedScene) else self.data.kind
        meta = {
            "source": source, "pair": f"{scene.id}-{i}-{j}", "frames": [frame.name for frame in frames],
            "omega": round(pool.omega[0], 4), "omega_valid": round(pool.omega_valid[0], 4), "generator": GENERATOR,
            "fundamental": fundamental(first, second).tolist(),
        }  # fmt: skip
        for (level, how), question in zip(KINDS, asked, strict=True):
            own = meta | {"level": level, "spread": how, "gold": list(question.gold), "second": len(question.second)}
            gold = dict(enumerate(question.gold, start=1))
            yield Sample(
                id=f"{meta['pair']}-{level}-{how}", scene=scene.id, task=TASK, answer_form=FORM,
                question=question_text(len(question.first), len(question.second)), answer=write_pairs(gold),
                views=views, marks=_marks(question, width, height), meta=own,
            )  # fmt: skip

    def _draw(self, marker: Marker, level: str, how: str, draw: list[int]) -> Asked:
        for attempt in range(TRIES):
            try:
                return marker.draw(level, how, np.random.default_rng([*draw, attempt]))
            except Refused as refusal:
                reason = refusal.reason
        raise Refused(f"{level}_{reason}")

    def _photo(self, scene: Scene, index: int, rgb: np.ndarray) -> View:
        if (scene.id, index) not in self._photos:
            self._photos[scene.id, index] = self.writer.add_photo(scene.id, index, rgb)
        return self._photos[scene.id, index]

    def summary(self) -> dict[str, Any]:
        return {
            "samples": len(self.writer),
            "asked_for": self.wanted,
            "by_task": dict(self.writer.by_task),
            "view_pairs": self.pairs,
            "scenes": len(self.writer.scenes),
            "scenes_left_out": self.left_out,
            "refused_views_by_reason": dict(self.refused.most_common()),
            "split": self.split,
            "seed": self.seed,
            "generator": GENERATOR,
            "data": self.data.model_dump(mode="json"),
        }


def _pairs(
    scene: Scene, stored: Sequence[Stored] | None, rng: np.random.Generator
) -> Iterator[tuple[int, int, Thinned | None]]:
    """Pairs of views in random order, and their matches where those are stored."""
    if stored is None:
        order = list(permutations(range(len(scene)), 2))
        rng.shuffle(order)
        yield from ((i, j, None) for i, j in order)
        return
    both = [way for one in stored for way in (one, one.turned())]
    yield from ((both[k].first, both[k].second, both[k].thinned) for k in rng.permutation(len(both)))


def _marks(asked: Asked, width: int, height: int) -> tuple[Mark, ...]:
    return tuple(
        Mark(view, "green", (thousandth(int(x), width), thousandth(int(y), height)), str(label))
        for view, marks in enumerate((asked.first, asked.second))
        for label, (x, y) in enumerate(marks, start=1)
    )
