"""SPAR-7M as a dataset of samples: rows drawn at random over all sources and tasks, split by room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hatch_ray.config import ConfigError
from hatch_ray.config_sections import DataConfig
from hatch_ray.data.geometry_check import check_geometry, refuse_misread
from hatch_ray.data.pairs import LARGE_RESIDUAL_DEG, gold_plans
from hatch_ray.data.refusals import BadRows, Refusal
from hatch_ray.data.spar.hub import HubRows
from hatch_ray.data.spar.index import open_index
from hatch_ray.data.spar.layout import FORMATS, SOURCES, SPLITS, UP, chosen_tasks, heldout, space_of, spar_folder
from hatch_ray.data.spar.leave_out import LeftOut
from hatch_ray.data.spar.record import Record, read_record
from hatch_ray.data.spar.stored import spar_scenes
from hatch_ray.data.spar.views import SceneViews, has_rgbd
from hatch_ray.data.store import DatasetWriter
from hatch_ray.geometry.convention import Convention
from hatch_ray.geometry.se3 import as_transform
from hatch_ray.sample import Sample, View

GENERATOR = "spar-v1"
"""Version of the reader, stored with every sample."""
CHECK_EVERY = 200
"""Rows between looks at the share of bad ones."""
NEED_POSES: tuple[str, ...] = ("pasta", "cold_start", "grpo")

Split = Literal["train", "heldout"]
Progress = Callable[[int, int], None]


def check_spar(data: DataConfig, stages: list[str]) -> None:
    """Refuse what a run could not use, before anything is read: no data, unknown tasks, stages that need poses.

    Raises ConfigError (a ValueError).
    """
    chosen_tasks(data.tasks, data.spar.views)
    if data.spar.hub:
        return
    if data.root is None:
        raise ConfigError(
            "data.kind=spar needs data.root=PATH, the folder of the unpacked archives, or data.spar.hub=OWNER/NAME"
        )
    root = spar_folder(data.root)
    needy = [stage for stage in stages if stage in NEED_POSES]
    if needy and data.spar.views != "single" and not has_rgbd(root, list(data.spar.sources)):
        raise ConfigError(
            f"{root} is SPAR-7M without depth and poses; {', '.join(needy)} need them (patch overlap, gold actions). "
            "Use SPAR-7M-RGBD, or train answers alone with stages=[qa_sft]"
        )


def build_spar(
    data: DataConfig, seed: int, split: Split, out: str | Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Write `data.samples` (or `data.heldout_samples`) rows, drawn by the seed, to `out`; return the summary.

    Rooms are split by a hash of their name and the seed. Colour files are linked or copied as they are. Raises
    ValueError when there is no usable row, when more than 5 % of the rows drawn are bad, or when `out` exists.
    """
    wanted = data.samples if split == "train" else data.heldout_samples
    with DatasetWriter(out) as writer:
        rows = (HubRows if data.spar.hub else TreeRows)(data, seed, split, writer.folder)
        made: Counter[str] = Counter()
        sources: Counter[str] = Counter()
        residuals = 0
        bad = BadRows(data.spar.hub or str(data.root))
        for where, source, form, raw in rows.draw():
            if len(writer) == wanted:
                break
            bad.read += 1
            try:
                record = read_record(raw, form)
                views = rows.views(source, raw, record)
                sample = _sample(record, source, rows.scene(source, record), views, len(writer), seed)
            except Refusal as refusal:
                bad.add(refusal, where)
            else:
                writer.add(sample)
                writer.add_scene(sample.scene, UP if sample.plans else None, ())
                made[sample.task] += 1
                sources[source] += 1
                residuals += any(plan.residual_deg > LARGE_RESIDUAL_DEG for plan in sample.plans)
                if progress:
                    progress(len(writer), wanted)
            if bad.read % CHECK_EVERY == 0:
                bad.check()
                rows.check()
        bad.check()
        rows.check()
        if not len(writer):
            raise ValueError(
                f"no row of {bad.place} can be used for {split} ({rows.summary()}); "
                "widen data.tasks, data.spar.sources, formats or views, data.heldout_fraction, or what is left out"
            )
        writer.summary = {
            "samples": len(writer),
            "asked_for": wanted,
            "by_task": dict(made.most_common()),
            "by_source": dict(sources),
            "scenes": len(writer.scenes),
            "depth_and_poses": rows.rgbd,
            "refused": bad.summary(),
            "plans_losing_over_15_deg_of_roll": residuals,
            "rows": rows.summary(),
            "split": split,
            "seed": seed,
            "generator": GENERATOR,
            "data": data.model_dump(mode="json"),
        }
        return writer.summary


def _sample(record: Record, source: str, scene: str, views: tuple[View, ...], number: int, seed: int) -> Sample:
    poses = [view.pose for view in views]
    known = [pose for pose in poses if pose is not None]
    try:
        plans = gold_plans([as_transform(pose) for pose in known], UP) if len(known) == len(views) else ()
    except ValueError as error:
        raise Refusal("no_gold_actions", str(error)) from None
    return Sample(
        id=f"{record.id or record.scene}-{record.task}-{record.format}-{number:06d}".replace("/", "_"),
        scene=scene,
        task=record.task,
        answer_form=record.form,
        question=record.question,
        answer=record.answer,
        views=views,
        marks=record.marks,
        plans=plans,
        meta={
            "format": record.format,
            "source": source,
            "frames": list(record.images),
            "up": UP.tolist() if plans else None,
            "seed": [seed, number],
            "generator": GENERATOR,
        },
    )


class TreeRows:
    """Rows of the published tree, through its index. rgbd: whether views have depth and poses."""

    def __init__(self, data: DataConfig, seed: int, split: Split, folder: Path) -> None:
        assert data.root is not None
        self.data, self.seed, self.split = data, seed, split
        root = spar_folder(data.root)
        self.index = open_index(root, data.spar.index or root / "hatch-index")
        self.rgbd = has_rgbd(root, list(data.spar.sources))
        convention = Convention.parse(data.convention)
        self._views = SceneViews(root, folder, self.rgbd, convention)
        self.geometry: list[str] = []
        if self.rgbd and data.check_geometry:
            verdicts = check_geometry(spar_scenes(root, data.spar.sources), convention)
            refuse_misread(verdicts, data.root)
            self.geometry = [verdict.words() for verdict in verdicts]
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
        """The record's views, with files below the dataset's folder. Raises Refusal."""
        depths = record.depths or (None,) * len(record.images)
        return tuple(self._views.view(source, image, depth) for image, depth in zip(record.images, depths, strict=True))

    def scene(self, source: str, record: Record) -> str:
        """The name of the record's scene, which no other scene has."""
        return self._views.scene_name(source, record.scene)

    def check(self) -> None:
        """Some scenes were looked at when the tree was opened."""

    def summary(self) -> dict[str, Any]:
        """What was read and left out."""
        found = {"geometry": self.geometry, "refused_lines": self.index.refused}
        return {"root": str(self.data.root), **self.counts, **found}

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
