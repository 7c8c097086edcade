"""The ablations on one HTML page that needs no network and no script, and in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hatch_ray.report.charts import Series, interval_chart, line_chart
from hatch_ray.report.data_page import template_environment
from hatch_ray.run_folder import RunFolder, write_atomic


def write_page(found: dict[str, Any], out: Path) -> Path:
    """Write OUT/ablation.html from the figures of `results.summarise`; returns its path."""
    charts = {}
    for table in found["tables"]:
        first, *others = [row["variant"] for row in table["rows"]]
        points = [(name, found["variants"][name]["columns"]["Avg"]) for name in (*others, first)]
        charts[table["title"]] = interval_chart(points, f"{table['title']}: answer reward in percent", controls=1)
    page = template_environment().get_template("ablation.html").render(
        name=out.name, found=found, charts=charts, curves=_curves(found),
        config_text=RunFolder(out).config_path.read_text(encoding="utf-8"),
    )  # fmt: skip
    path = out / "ablation.html"
    write_atomic(path, page)
    return path


def _curves(found: dict[str, Any]) -> dict[str, str]:
    """Reward -> its chart."""
    charts = {}
    for name, lines in (found["curves"] or {"terms": {}})["terms"].items():
        series = []
        for variant, values in lines.items():
            known = [(step, value) for step, value in enumerate(values, start=1) if value is not None]
            series.append(Series(variant, [step for step, _ in known], [value for _, value in known]))
        if series:
            charts[name] = line_chart(series, f"{name} reward while GRPO trains")
    return charts


def _short(interval: dict[str, Any] | None, sign: str = "") -> str:
    """ "52.0 ±2.8": half of the interval behind the figure."""
    if interval is None:
        return "-"
    return f"{interval['value']:{sign}.1f} ±{(interval['high'] - interval['low']) / 2:.1f}"


def _table(found: dict[str, Any], table: dict[str, Any]) -> Table:
    """At most 100 columns wide: figures, and below them the differences from the first variant."""
    grid = Table(title=table["title"], title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("variant", *found["columns"], "sight"):
        grid.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=True)
    for row in table["rows"]:
        variant, ours, paper = found["variants"][row["variant"]], row["difference"], row["paper"]
        cells = [_short(variant["columns"][column]) for column in found["columns"]]
        grid.add_row(variant["title"], *cells, _short(variant["answer_fall"]), end_section=not ours)
        if ours:
            grid.add_row("  difference", *(_short(ours[column], "+") for column in found["columns"]))
        if paper:
            printed = (f"{paper[column]:+.1f}" if column in paper else "" for column in found["columns"])
            grid.add_row("  difference in the paper", *printed, style="dim")
    return grid


def print_ablation(found: dict[str, Any], console: Console) -> None:
    """The tables, the curves' differences, and which differences agree with the paper's."""
    for table in found["tables"]:
        console.print(_table(found, table))
    seeds = ", ".join(map(str, found["seeds"]))
    console.print(
        f"Answer reward in percent, {found['samples']} held-out samples of {found['scenes']} scene(s), seeds {seeds}. "
        "±: half of the 95 % interval over scenes and seeds. sight: by how much answers fall with swapped images."
    )
    for name, change in (found["curves"] or {"change": {}})["change"].items():
        for other, values in change.items():
            by_seed = ", ".join(f"{value:+.3f}" for value in values)
            console.print(f"{found['curves']['title']}, {name}: mean of the first less {other}, by seed: {by_seed}")
    rows = [row for table in found["tables"] for row in table["rows"]]
    for word in ("agrees", "contradicts", "within noise"):
        of = [f"{row['variant']} {column}" for row in rows for column, one in row["verdicts"].items() if one == word]
        console.print(f"{word}: {len(of)} of the paper's differences" + f" ({', '.join(of)})" * bool(of), markup=False)
