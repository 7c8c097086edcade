"""From scenes to a dataset: views are drawn, questions asked, gold actions attached, tasks and scenes balanced."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hatch_ray.config_sections import DataConfig, RoomsConfig
from hatch_ray.data.pairs import Refused, SceneViews, gold_plans, landmarks_alone
from hatch_ray.data.questions import Task, as_choice, choose_tasks
from hatch_ray.data.rgbd import read_sequences
from hatch_ray.data.rooms import PRETRAIN_SEEDS, Room, RoomOptions
from hatch_ray.data.scene import Scene
from hatch_ray.data.scenes.splits import split_scenes
from hatch_ray.data.spar.reader import build_spar
from hatch_ray.data.store import SPLITS, Split
from hatch_ray.data.writer import DatasetWriter
from hatch_ray.sample import Sample

Progress = Callable[[int, int], None]
"""Called with (samples made, samples asked for)."""

GENERATOR = "questions-v1"
"""Version of the question generator, stored with every sample."""
SEEDS_PER_RUN = 100_000
HELDOUT_OFFSET = 50_000
ROUNDS = 3
"""Passes over the scenes. In the last one, what some tasks could not give is asked of the others."""
TRIES = 100
"""Draws of views in a row that may fail before a task leaves a scene."""


def build_dataset(
    data: DataConfig, seed: int, split: Split, out: str | Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the split's dataset to `out` and return its summary.

    Rooms are split by scene (other seeds), posed RGB-D by time, SPAR-7M by room. Raises ValueError when no sample can
    be made, when a task asked for cannot be, or when `out` exists.
    """
    if data.kind == "spar":
        return build_spar(data, seed, split, out, progress)
    wanted = data.samples if split == "train" else data.heldout_samples
    with DatasetWriter(out) as writer:
        scenes, source = scenes_of(data, seed, split)
        tasks = choose_tasks(data.tasks, has_objects=data.kind == "rooms")
        builder = _Builder(data, seed, split, tasks, wanted, writer, progress)
        for round_index in range(ROUNDS):
            if builder.complete:
                break
            if round_index == ROUNDS - 1:
                builder.hand_over_missing()
            for position, scene in enumerate(scenes):
                builder.use(scene(), position, (position + 1) / len(scenes), round_index)
        if not len(writer):
            reasons = ", ".join(f"{count} {reason}" for reason, count in builder.refused.most_common(4))
            raise ValueError(f"no question could be made for {split} ({reasons}); widen data.min_overlap/max_overlap")
        writer.summary = builder.summary() | source
        return writer.summary


def write_splits(
    build: Callable[[str, Split, Path], Any], sections: Mapping[str, str], out: str | Path
) -> dict[str, dict[str, Any]]:
    """Both datasets of every section, or nothing; their summaries by folder, "train" or "views/train".

    build(section, split, folder) writes one; sections: name -> folder below `out`, "" for `out` itself. Raises
    ValueError where `out` exists, and what `build` raises.
    """
    out = Path(out).expanduser().absolute()
    if out.exists():
        raise ValueError(f"{out} exists already; choose another folder or remove it")
    folder = out.with_name(f".{out.name}.building-{os.getpid()}")
    places = {(section, split): str(Path(below) / split) for section, below in sections.items() for split in SPLITS}
    try:
        for (section, split), place in places.items():
            build(section, split, folder / place)
        summaries = {place: json.loads((folder / place / "summary.json").read_text()) for place in places.values()}
        os.replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return summaries


def scenes_of(data: DataConfig, seed: int, split: Split) -> tuple[Sequence[Callable[[], Scene]], dict[str, Any]]:
    """What makes each scene of a split, and what their source says of itself."""
    if data.kind == "rgbd":
        sequences = read_sequences(data)
        return [partial(lambda scene: scene, scene) for scene in sequences.split(split)], {"source": sequences.summary}
    if data.kind == "scenes":
        return split_scenes(data, seed, split)
    rooms = data.rooms
    options = RoomOptions(rooms.image_size, rooms.image_size, rooms.fov_deg, rooms.views_per_scene, rooms.compass)
    return [partial(Room, room_seed, options) for room_seed in room_seeds(rooms, seed, split)], {}


def room_seeds(rooms: RoomsConfig, seed: int, split: Split) -> range:
    """The seeds of a split's rooms: none is in both splits, or in two runs of other seeds. Raises ValueError."""
    count = rooms.train_scenes if split == "train" else rooms.heldout_scenes
    if (seed + 1) * SEEDS_PER_RUN > PRETRAIN_SEEDS or count > HELDOUT_OFFSET:
        raise ValueError(
            f"rooms need seed < {PRETRAIN_SEEDS // SEEDS_PER_RUN} and at most {HELDOUT_OFFSET} scenes a split, "
            f"got seed {seed} and {count} scenes"
        )
    first = seed * SEEDS_PER_RUN + (HELDOUT_OFFSET if split == "heldout" else 0)
    return range(first, first + count)


class _Builder:
    """Makes samples until each task has its share; counts what was refused and why."""

    def __init__(
        self, data: DataConfig, seed: int, split: Split, tasks: list[Task], wanted: int, writer: DatasetWriter,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.data, self.seed, self.split, self.writer, self.progress = data, seed, split, writer, progress
        self.tasks = tasks
        self.formats = {task.name: task.formats_among(data.formats) for task in tasks}
        self.share = {task.name: wanted // len(tasks) + (k < wanted % len(tasks)) for k, task in enumerate(tasks)}
        self.quota = dict(self.share)
        self.wanted = wanted
        self.made = writer.by_task
        self.refused: Counter[str] = Counter()
        self._asked: set[tuple[Any, ...]] = set()

    @property
    def complete(self) -> bool:
        return all(self.made[name] >= quota for name, quota in self.quota.items())

    def hand_over_missing(self) -> None:
        """Ask the tasks that met their share for what the others could not give."""
        able = [name for name, quota in self.quota.items() if self.made[name] >= quota]
        missing = self.wanted - len(self.writer)
        for place, name in enumerate(able):
            self.quota[name] += missing // len(able) + (place < missing % len(able))
        for name in self.quota.keys() - set(able):
            self.quota[name] = self.made[name]

    def use(self, scene: Scene, position: int, share_of_scenes: float, round_index: int) -> None:
        """Draw samples from the scene until each task has its share of the scenes seen so far."""
        if self.complete:
            return
        views = SceneViews(scene, self.data.min_overlap, self.data.max_overlap)
        for task_index, task in enumerate(self.tasks):
            if task.needs_depth and landmarks_alone(scene) is not None:
                self.refused["scene_has_no_depth"] += 1
                continue
            # Tasks are staggered, so that few questions over many scenes still use all of them.
            phase = task_index / len(self.tasks)
            share = share_of_scenes if round_index == 0 else 1.0
            due = min(self.quota[task.name], int(self.quota[task.name] * share + phase))
            failures = attempt = 0
            while self.made[task.name] < due and failures < TRIES:
                draw = [self.seed, SPLITS.index(self.split), position, task_index, round_index, attempt]
                attempt += 1
                try:
                    self._make(task, scene, views, draw)
                    failures = 0
                except Refused as refusal:
                    self.refused[refusal.reason] += 1
                    failures += 1

    def _make(self, task: Task, scene: Scene, views: SceneViews, draw: list[int]) -> None:
        rng = np.random.default_rng(draw)
        chosen = views.draw(min(task.views, max(2, self.data.max_views)), rng)
        question = task.make(chosen, rng)
        # A task that has several of the formats asked for gives them in turn.
        formats, form = self.formats[task.name], task.form
        if formats[self.made[task.name] % len(formats)] == "select" and form != "letter":
            question, form = as_choice(question, form, rng), "letter"
        key = (task.name, scene.id, chosen.indices, question.marks)
        if key in self._asked:
            raise Refused("asked_already")
        self._asked.add(key)
        views_of = zip(chosen.indices, chosen.frames, strict=True)
        sample = Sample(
            id=f"{scene.id}-{task.name}-{self.made[task.name]:05d}",
            scene=scene.id,
            task=task.name,
            answer_form=form,
            question=question.text,
            answer=question.answer,
            views=tuple(self.writer.add_view(scene.id, index, frame) for index, frame in views_of),
            marks=question.marks,
            plans=gold_plans(chosen.transforms, scene.up),
            meta={
                "gold": question.gold,
                "frames": [frame.name for frame in chosen.frames],
                "overlaps": [round(omega, 4) for _, omega in sorted(chosen.overlaps.items())],
                "up": None if scene.up is None else scene.up.tolist(),
                "seed": draw,
                "generator": GENERATOR,
            },
        )
        self.writer.add(sample)
        self.writer.add_scene(scene.id, scene.up, scene.objects)
        if self.progress:
            self.progress(len(self.writer), self.wanted)

    def summary(self) -> dict[str, Any]:
        short = {name: share - self.made[name] for name, share in self.share.items() if self.made[name] < share}
        return {
            "samples": len(self.writer),
            "asked_for": self.wanted,
            "short_of_equal_share": short,
            "by_task": dict(self.made),
            "scenes": len(self.writer.scenes),
            "refused_views_by_reason": dict(self.refused.most_common()),
            "plans_losing_over_15_deg_of_roll": self.writer.large_residuals,
            "split": self.split,
            "seed": self.seed,
            "generator": GENERATOR,
            "data": self.data.model_dump(mode="json"),
        }
