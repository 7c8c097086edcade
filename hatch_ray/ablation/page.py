"""The ablations on one HTML page that needs no network and no script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatch_ray.ablation.tables import TITLES, change, columns, paper_figure, row_label, sections
from hatch_ray.ablation.variants import FULL, NO_PASTA
from hatch_ray.report.charts import Series, interval_chart, line_chart
from hatch_ray.report.data_page import template_environment
from hatch_ray.run_folder import RunFolder, write_atomic

REST = (("answer_fall", 1), ("action", 3), ("action_fall", 3), ("format", 3))
"""What stands beside the columns, with its decimals."""
CURVE_NAMES = {FULL: "with PaStA", NO_PASTA: "without PaStA"}


def write_page(found: dict[str, Any], out: Path) -> Path:
    """Write OUT/ablation.html from the figures of `results.summarise`; returns its path."""
    page = (
        template_environment()
        .get_template("ablation.html")
        .render(
            name=out.name,
            found=found,
            columns=columns(found),
            tables=[_table(found, title, list(names)) for title, names in sections(found)],
            curves=[_curve(found, key) for key in ("action", "answer")],
            curve_change={key: ", ".join(f"{v:+.3f}" for v in values) for key, values in found["curve_change"].items()},
            grid_chart=_grid_chart(found),
            agreement=[
                one | {"label": found["variants"][one["variant"]]["label"], "here": change(one["ours"])}
                for one in found["agreement"]
            ],
            config_text=RunFolder(out).config_path.read_text(encoding="utf-8"),
        )
    )
    path = out / "ablation.html"
    write_atomic(path, page)
    return path


def _table(found: dict[str, Any], title: str, names: list[str]) -> dict[str, Any]:
    rows = []
    for name in names:
        variant = found["variants"][name]
        rows.append({
            "label": row_label(found, title, name),
            "cells": [
                {
                    "ours": variant["columns"][column],
                    "change": change(variant["difference"][column]) if name != FULL else "",
                    "paper": paper_figure(name, column),
                }
                for column in columns(found)
            ],
            "by_seed": ", ".join(f"{value:.1f}" for value in variant["by_seed"]),
            "rest": [(variant[name], digits) for name, digits in REST],
        })  # fmt: skip
    return {"title": title, "about": TITLES[title], "rows": rows}


def _curve(found: dict[str, Any], key: str) -> dict[str, Any]:
    series = []
    for name, label in CURVE_NAMES.items():
        if name not in found["curves"]:
            continue
        known = [(step, value) for step, value in enumerate(found["curves"][name][key], start=1) if value is not None]
        series.append(Series(label, [step for step, _ in known], [value for _, value in known]))
    title = f"{key} reward while GRPO trains"
    return {"title": title, "legend": list(CURVE_NAMES.values()), "svg": line_chart(series, title)}


def _grid_chart(found: dict[str, Any]) -> str:
    points = [(f"n = {one['grid']}", found["variants"][one["variant"]]["columns"]["Avg"]) for one in found["grids"]]
    if not points:
        return ""
    points.append(("without PaStA", found["variants"][NO_PASTA]["columns"]["Avg"]))
    return interval_chart(points, "answer reward by PaStA's grid, percent", controls=1)
