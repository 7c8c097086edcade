"""A dataset of pairs of photos: balanced in side and letter, split by scene, some samples with a thought."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hatch_ray.data.images import shrink
from hatch_ray.data.pairs import Refused, gold_plans
from hatch_ray.data.store import SPLITS, Split
from hatch_ray.data.writer import DatasetWriter
from hatch_ray.geometry.se3 import as_transform
from hatch_ray.sample import Sample
from hatch_ray.systems.viewpoint.config import ViewpointData
from hatch_ray.systems.viewpoint.motion import Motion
from hatch_ray.systems.viewpoint.questions import TYPES, Asked, Balance, ask, known_types, side
from hatch_ray.systems.viewpoint.sources import Pairs, sources
from hatch_ray.systems.viewpoint.thoughts import think

GENERATOR = "viewpoint-v1"
ROUNDS = 4
"""Passes over the scenes: in each a pair is asked about once."""
TRIES = 50
"""Pairs in a row that may be refused before a scene is left."""


def build_views(
    data: ViewpointData,
    seed: int,
    split: Split,
    out: Path,
    report: Callable[[int, int], None] | None = None,
    mixed: bool = False,
    max_pixels: int = 0,
) -> None:
    """Write a split's dataset at `out`. Every sample asks for a thought first, and has one that leads to its answer;
    mixed: all but `think_share` of the samples ask for the bare answer, and those with a thought repeat. max_pixels: no
    photo of a posed sequence is kept larger, as the model sees no more (0: as it is).

    Raises ValueError where no pair can be used, and as `sources`.
    """
    makers = sources(data, seed, split)
    wanted = data.samples if split == "train" else data.heldout_samples
    thinking = min(round(data.think_share * wanted), wanted - 1) if mixed else 0
    with DatasetWriter(out) as writer:
        builder = _Builder(data, [seed, SPLITS.index(split)], wanted - thinking, writer, mixed, report, max_pixels)
        for turn in range(ROUNDS):
            for position, make in enumerate(makers):
                if builder.done:
                    break
                builder.use(make, position, (position + 1) / len(makers) if turn == 0 else 1.0, turn)
        if not builder.made:
            reasons = ", ".join(f"{count} {reason}" for reason, count in builder.refused.most_common(4))
            raise ValueError(f"no pair of photos could be asked about for {split} ({reasons}); give other scenes")
        repeats = builder.add_thoughts(
            min(thinking, round(data.think_share / (1 - data.think_share) * len(builder.made)))
        )
        writer.summary = {
            "samples": len(writer),
            "asked_for": wanted,
            "by_task": dict(writer.by_task),
            "scenes": len({sample.scene for sample in builder.made}),
            "refused_pairs_by_reason": dict(builder.refused.most_common()),
            "left_right": dict(Counter(sample.meta["side"] for sample in builder.made)),
            **repeats,
            "split": split,
            "seed": seed,
            "generator": GENERATOR,
            "data": data.model_dump(mode="json"),
        }


class _Builder:
    """Makes samples scene by scene; counts what was refused and why."""

    def __init__(
        self, data: ViewpointData, seeds: list[int], wanted: int, writer: DatasetWriter, direct: bool,
        report: Callable[[int, int], None] | None, max_pixels: int,
    ) -> None:  # fmt: skip
        self.data, self.seeds, self.wanted, self.writer, self.report = data, seeds, wanted, writer, report
        self.direct, self.max_pixels = direct, max_pixels
        self.types = known_types(data.tasks, data.mode)
        self.refused: Counter[str] = Counter()
        self.made: list[Sample] = []
        self._motions: list[Motion] = []
        self._asked: set[tuple[Any, ...]] = set()
        self._balance = Balance(np.random.default_rng([*seeds, 1]))

    @property
    def done(self) -> bool:
        return len(self.made) >= self.wanted

    def use(self, make: Callable[[], Pairs], position: int, share: float, turn: int) -> None:
        """Ask about pairs of a scene until its share of the scenes so far is there."""
        due = min(self.wanted, int(np.ceil(self.wanted * share)))
        if len(self.made) >= due:
            return
        rng = np.random.default_rng([*self.seeds, 2, turn, position])
        try:
            pairs = make()
        except Refused as refusal:
            self.refused[refusal.reason] += 1
            return
        failures = 0
        both = np.triu_indices(pairs.count, 1)
        for place in rng.permutation(len(both[0])):
            if len(self.made) >= due or failures == TRIES:
                break
            try:
                self._add(pairs, int(both[0][place]), int(both[1][place]), rng)
                failures = 0
            except Refused as refusal:
                self.refused[refusal.reason] += 1
                failures += 1

    def _add(self, pairs: Pairs, first: int, second: int, rng: np.random.Generator) -> None:
        motion, back = pairs.motion(first, second), pairs.motion(second, first)
        names = self.types if self.data.every_question else [self.types[len(self.made) % len(self.types)]]
        key = (pairs.id, first, second, names[0])
        if key in self._asked:
            raise Refused("asked_already")
        self._asked.add(key)
        # Flipped, every side is the other one: within a kind of pair one balanced type balances all of them.
        kind = names[0] if len(names) == 1 else f"{motion.lateral * motion.yaw_deg > 0}"
        wanted, letter = self._balance.next(kind)
        if side(names[0], motion) != wanted:
            first, second, motion = second, first, back
        frames = [pairs.frame(index) for index in (first, second)]
        if pairs.metric:
            views = [self.writer.add_view(pairs.id, *shown) for shown in zip((first, second), frames, strict=True)]
            plans = gold_plans([as_transform(frame.pose) for frame in frames], pairs.up)
        else:
            shown = zip((first, second), frames, strict=True)
            views = [self.writer.add_photo(pairs.id, index, self._kept(frame.rgb)) for index, frame in shown]
            plans = ()
        up = pairs.up.tolist() if pairs.metric else None
        meta = {"mode": self.data.mode, "frames": [frame.name for frame in frames], "up": up}
        pair = Sample("", pairs.id, "", "", "", "", tuple(views), plans=plans, meta=meta)
        for number, name in enumerate(names):
            if number:
                letter = self._balance.next(f"{kind} {name}")[1]
            if self.done:
                break
            self._write(pair, name, motion, letter, rng)

    def _kept(self, rgb: np.ndarray) -> np.ndarray:
        return np.asarray(shrink(Image.fromarray(rgb), self.max_pixels)) if self.max_pixels else rgb

    def _write(self, pair: Sample, name: str, motion: Motion, letter: str, rng: np.random.Generator) -> None:
        """Add the question of a type to a pair."""
        asked = ask(name, motion, self.data.mode, letter, rng)
        numbers = {key: value if value is None else round(value, 4) for key, value in asdict(motion).items()}
        meta = pair.meta | numbers | {"side": side(name, motion), "options": asked.options, "generator": GENERATOR}
        meta |= {"direct": True} if self.direct else {"thought": think(name, motion, self.data.mode, asked, rng)}
        sample = replace(
            pair, id=f"{pair.scene}-{name}-{len(self.made):06d}", task=name, answer_form=TYPES[name].form,
            question=asked.text, answer=asked.answer, meta=meta,
        )  # fmt: skip
        self.made.append(sample)
        self._motions.append(motion)
        self.writer.add(sample)
        if self.report:
            self.report(len(self.writer), self.wanted)

    def add_thoughts(self, count: int) -> dict[str, int]:
        """Write `count` samples with a thought: the first ones again, in turn, each time in other words."""
        if not count:
            return {}
        pool = min(self.data.think_pool, count, len(self.made))
        rng = np.random.default_rng([*self.seeds, 3])
        for number in range(count):
            place = number % pool
            sample, motion = self.made[place], self._motions[place]
            asked = Asked(sample.question, sample.answer, tuple(sample.meta["options"]))
            thought = think(sample.task, motion, self.data.mode, asked, rng)
            meta = {key: value for key, value in sample.meta.items() if key != "direct"} | {"thought": thought}
            self.writer.add(replace(sample, id=f"{sample.id}-thought-{number // pool}", meta=meta))
        return {"thinking": count, "thinking_pool": pool, "thinking_repeats": -(-count // pool)}
