"""The ablations on one HTML page that needs no network and no script, and in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hatch_ray.report.charts import Series, interval_chart, line_chart
from hatch_ray.report.pages import render
from hatch_ray.run_folder import RunFolder, write_atomic


def write_page(found: dict[str, Any], out: Path) -> Path:
    """Write OUT/ablation.html from the figures of `results.summarise`; returns its path."""
    charts = {}
    for title, (first, *others) in found["tables"].items():
        points = [(name, found["variants"][name]["columns"]["Avg"]) for name in (*others, first)]
        charts[title] = interval_chart(points, f"{title}: answer reward in percent", controls=1)
    curves = {name: _chart(name, curve["steps"]) for name, curve in found["curves"].items() if curve["steps"]}
    page = render(
        "ablation.html", name=out.name, found=found, charts=charts, curves=curves,
        config_text=RunFolder(out).config_path.read_text(encoding="utf-8"),
    )  # fmt: skip
    path = out / "ablation.html"
    write_atomic(path, page)
    return path


def _chart(name: str, lines: dict[str, list[float | None]]) -> str:
    series = []
    for variant, values in lines.items():
        known = [(step, value) for step, value in enumerate(values, start=1) if value is not None]
        series.append(Series(variant, [step for step, _ in known], [value for _, value in known]))
    return line_chart(series, f"{name} reward while GRPO trains")


def _short(interval: dict[str, Any] | None, sign: str = "") -> str:
    """ "52.0 ±2.8": half of the interval behind the figure."""
    if interval is None:
        return "-"
    return f"{interval['value']:{sign}.1f} ±{(interval['high'] - interval['low']) / 2:.1f}"


def _table(found: dict[str, Any], title: str, names: list[str]) -> Table:
    """At most 100 columns wide: figures, and below them the differences from another variant."""
    grid = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("variant", *found["columns"], "sight"):
        grid.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=True)
    for name in names:
        variant = found["variants"][name]
        cells = [_short(variant["columns"][column]) for column in found["columns"]]
        grid.add_row(variant["title"], *cells, _short(variant["answer_fall"]))
        if name != names[0]:
            grid.add_row("  difference", *(_short(variant["difference"][column], "+") for column in found["columns"]))
        if name != names[0] and (paper := variant["paper_difference"]):
            printed = (f"{paper[column]:+.1f}" if column in paper else "" for column in found["columns"])
            grid.add_row("  difference in the paper", *printed, style="dim")
    return grid


def print_ablation(found: dict[str, Any], console: Console) -> None:
    """The tables, the curves' differences, and which differences agree with the paper's."""
    for title, names in found["tables"].items():
        console.print(_table(found, title, names))
    seeds = ", ".join(map(str, found["seeds"]))
    console.print(
        f"Answer reward in percent, {found['samples']} held-out samples of {found['scenes']} scene(s), seeds {seeds}. "
        "±: half of the 95 % interval over scenes and seeds. sight: by how much answers fall with swapped images."
    )
    for name, curve in found["curves"].items():
        for other, values in curve["change"].items():
            by_seed = ", ".join(f"{value:+.3f}" for value in values)
            first = next(iter(curve["steps"]))
            console.print(f"mean {name} reward while GRPO trains, {first} less {other}, by seed: {by_seed}")
    verdicts = [(f"{name} {c}", word) for name, one in found["variants"].items() for c, word in one["verdicts"].items()]
    for word in ("agrees", "contradicts", "within noise") if verdicts else ():
        of = [place for place, said in verdicts if said == word]
        console.print(f"{word}: {len(of)} of the paper's differences" + f" ({', '.join(of)})" * bool(of), markup=False)
