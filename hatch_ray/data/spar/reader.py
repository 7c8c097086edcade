"""SPAR-7M as a dataset of samples: rows drawn at random over all sources and tasks, split by room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from hatch_ray.config import ConfigError
from hatch_ray.config_sections import DataConfig
from hatch_ray.data.pairs import gold_plans
from hatch_ray.data.refusals import BadRows, Refusal
from hatch_ray.data.spar.hub import HubRows
from hatch_ray.data.spar.layout import UP, chosen_tasks, spar_folder
from hatch_ray.data.spar.record import Record, read_record
from hatch_ray.data.spar.tree import TreeRows
from hatch_ray.data.spar.views import has_rgbd
from hatch_ray.data.writer import DatasetWriter
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
        sources: Counter[str] = Counter()
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
                sources[source] += 1
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
            "by_task": dict(writer.by_task.most_common()),
            "by_source": dict(sources),
            "scenes": len(writer.scenes),
            "depth_and_poses": rows.rgbd,
            "refused": bad.summary(),
            "plans_losing_over_15_deg_of_roll": writer.large_residuals,
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
