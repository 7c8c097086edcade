"""PaStA's gauge: what the model could do before the stage, and what of that it still can.

Held-out questions of the run, by the log-probability of their gold answers, for any model; and the base's own skills,
where some lie beside its weights (`hatch_ray.learning.skills`). The stage's workers measure from the model folders, one
the input, another the result.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hatch_ray.config import Config
from hatch_ray.evaluation.kept import ANSWERS, Measure, kept_table, warnings
from hatch_ray.learning.sft import SampleEncoder, gold_logprobs
from hatch_ray.learning.skills import SkillTest, read_skills
from hatch_ray.model.base import load_model, load_processor
from hatch_ray.model.fast_vision import speed_up_vision
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.run_folder import RunFolder, write_atomic
from hatch_ray.sample import Sample
from hatch_ray.systems import system_of

QUESTIONS = 120
"""Held-out questions whose gold answers are scored, drawn by seed when there are more."""
WHEN = ("before", "after")


@dataclass(frozen=True)
class Gauge:
    """What is measured. asked: the stage in whose words the held-out questions are asked; samples: these questions."""

    config: Config
    stage: str
    asked: str
    samples: list[Sample]


def make_gauge(config: Config, stage: str, model: str | Path, heldout: Sequence[Sample]) -> Gauge:
    """The questions of a stage that starts from `model`: asked as the next supervised stage asks, as far as they fit
    its context; none where the system has no such stage.
    """
    system = system_of(config)
    names = [one.name for one in system.stages]
    later = [one.name for one in system.stages[names.index(stage) :] if one.kind == "sft"]
    if not later:
        return Gauge(config, stage, stage, [])
    encoder = SampleEncoder(load_processor(model, config.model.max_pixels), system, later[0])
    order = np.random.default_rng(config.seed).permutation(len(heldout))
    fitting = (heldout[i] for i in order if encoder.length(heldout[i]) <= config.model.max_length)
    return Gauge(config, stage, later[0], [sample for sample, _ in zip(fitting, range(QUESTIONS), strict=False)])


def figures_path(run: RunFolder, stage: str, when: str) -> Path:
    """The file of the figures of each question."""
    return run.path / stage / "gauge" / f"{when}.json"


def measure_share(
    gauge: Gauge, run: RunFolder, first: str | Path, number: int, count: int, device: torch.device
) -> None:
    """The part of worker `number` of the `count` on the first node, which has the weights: the first one measures the
    stage's result and its input. On CPUs a second one, if there is one, takes the input; on GPUs that would take more
    of the machine's memory than the copy for a checkpoint, which is gone by now.
    """
    folders = {"before": first, "after": run.stage_model(gauge.stage)}
    for when, of in (("after", 0), ("before", min(1, count - 1) if device.type == "cpu" else 0)):
        if number == of:
            figures = measure(gauge, folders[when], device)
            write_atomic(figures_path(run, gauge.stage, when), json.dumps(figures))


def measure(gauge: Gauge, folder: str | Path, device: torch.device) -> dict[str, list[float]]:
    """Figures of each question of one model: "skills" and "answers"."""
    config = gauge.config
    half = config.learner.compute == "bfloat16"
    model: Any = load_model(folder, "bfloat16" if half and device.type != "cpu" else "float32").to(device)
    speed_up_vision(model, device)
    processor = load_processor(folder, config.model.max_pixels)
    skills = read_skills(config.model.base)
    found = {"skills": [] if skills is None else SkillTest(skills, processor).judge(model).tolist()}
    if gauge.samples:
        encoder = SampleEncoder(processor, system_of(config), gauge.asked)
        scorer = ReplyScorer(model, compute=config.learner.compute)
        found["answers"] = gold_logprobs(scorer, encoder, gauge.samples).tolist()
    return found


def write_kept(gauge: Gauge, run: RunFolder, bootstrap: int) -> dict[str, Any]:
    """Compare what the workers measured: RUN/eval/kept.json, {"stage", "kept": rows, "warnings": lines}."""
    config = gauge.config
    before, after = (json.loads(figures_path(run, gauge.stage, when).read_text(encoding="utf-8")) for when in WHEN)
    measures = []
    if (skills := read_skills(config.model.base)) is not None:
        scenes, names = np.array(skills.scenes()), np.array([question.skill for question in skills.questions])
        figures = [np.array(found["skills"]) for found in (before, after)]
        for name, unit in skills.units.items():
            of = names == name
            measures.append(Measure(name, unit, scenes[of].tolist(), *(values[of] for values in figures)))
    if gauge.samples:
        answers = (np.array(found["answers"]) for found in (before, after))
        measures.append(Measure(ANSWERS, "nats", [sample.scene for sample in gauge.samples], *answers))
    rows = kept_table(measures, bootstrap, config.seed)
    settings = config.settings(gauge.stage)
    help = f"lower {gauge.stage}.lr ({settings.lr:g}) or {gauge.stage}.max_steps"
    table = {"stage": gauge.stage, "kept": rows, "warnings": warnings(rows, help)}
    write_atomic(run.evaluation("kept"), json.dumps(table, indent=2))
    return table
