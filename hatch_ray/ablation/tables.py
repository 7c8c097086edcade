"""The ablations' tables: rows for the page, and the terminal's print of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hatch_ray.ablation.variants import COLUMNS, FULL, NO_PASTA, PAPER, TABLE_2, TABLE_3

TITLES = {
    "Table 2": "components of the recipe",
    "Table 3": "what the model writes before its answer",
    "Figure 4": "patches a side of PaStA's grid",
}
COLOURS = {"agrees": "green", "contradicts": "red", "within noise": "dim"}


def figure(interval: dict[str, Any] | None, digits: int = 1) -> str:
    """ "52.0 (49.1 to 54.8)"."""
    if interval is None:
        return "-"
    value, low, high = (f"{interval[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def change(interval: dict[str, Any] | None, digits: int = 1) -> str:
    """ "+1.2 (-0.3 to 2.7)"."""
    text = figure(interval, digits)
    return text if text.startswith("-") else "+" + text


def columns(found: dict[str, Any]) -> list[str]:
    """The columns that the held-out samples fill."""
    return [name for name in COLUMNS if name in found["variants"][FULL]["columns"]]


def paper_figure(name: str, column: str) -> str:
    """The paper's figure, with its difference from the full recipe; empty where it prints none."""
    if name not in PAPER:
        return ""
    index = COLUMNS.index(column)
    value, whole = PAPER[name][index], PAPER[FULL][index]
    return f"{value:.1f}" if name == FULL else f"{value:.1f} ({value - whole:+.1f})"


def sections(found: dict[str, Any]) -> list[tuple[str, Sequence[str]]]:
    """(title, variants in order) of each table that has something to compare."""
    grids = [one["variant"] for one in found["grids"]]
    tables = [("Table 2", TABLE_2), ("Table 3", TABLE_3), ("Figure 4", (*grids, NO_PASTA))]
    trained = [(title, [name for name in names if name in found["variants"]]) for title, names in tables]
    return [(title, names) for title, names in trained if len(names) > 1]


def row_label(found: dict[str, Any], title: str, name: str) -> str:
    """A variant's name in one of the tables."""
    if title == "Figure 4" and name == FULL:
        grid = next(one["grid"] for one in found["grids"] if one["variant"] == FULL)
        return f"PaStA with n = {grid} (all stages)"
    return str(found["variants"][name]["label"])


def _short(interval: dict[str, Any] | None, sign: str = "") -> str:
    """ "52.0 ±2.8": half of the interval behind the figure."""
    if interval is None:
        return "-"
    return f"{interval['value']:{sign}.1f} ±{(interval['high'] - interval['low']) / 2:.1f}"


def text_table(found: dict[str, Any], title: str, names: Sequence[str]) -> Table:
    """One table, at most 100 columns wide: figures, and below them the differences from the full recipe."""
    table = Table(title=f"{title}: {TITLES[title]}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("variant", no_wrap=True)
    for column in (*columns(found), "sight"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in names:
        variant, last = found["variants"][name], name == names[-1]
        cells = [_short(variant["columns"][column]) for column in columns(found)]
        table.add_row(row_label(found, title, name), *cells, _short(variant["answer_fall"]), end_section=name == FULL)
        if name == FULL:
            continue
        table.add_row("  difference", *(_short(variant["difference"][column], "+") for column in columns(found)))
        if name in PAPER:
            paper = (f"{PAPER[name][k] - PAPER[FULL][k]:+.1f}" for k in map(COLUMNS.index, columns(found)))
            table.add_row("  difference in the paper", *paper, style="dim", end_section=not last)
    return table


def print_ablation(found: dict[str, Any], console: Console) -> None:
    """The three tables, the curves' difference, and which differences agree with the paper's."""
    for title, names in sections(found):
        console.print(text_table(found, title, names))
    seeds = ", ".join(map(str, found["seeds"]))
    console.print(
        f"Answer reward in percent, {found['samples']} held-out samples of {found['scenes']} scene(s), seeds {seeds}. "
        "±: half of the 95 % interval over scenes and seeds. sight: by how much answers fall with swapped images."
    )
    if found["grids"]:
        over = ", ".join(f"n = {one['grid']}: {_short(one['over_no_pasta'], '+')}" for one in found["grids"])
        console.print(f"Figure 4: with PaStA minus without: {over}")
    for key, values in found["curve_change"].items():
        by_seed = ", ".join(f"{value:+.3f}" for value in values)
        console.print(f"Figure 3: mean {key} reward while GRPO trains, with PaStA minus without, by seed: {by_seed}")
    by_verdict = {word: [one for one in found["agreement"] if one["verdict"] == word] for word in COLOURS}
    for word, members in by_verdict.items():
        listed = ", ".join(f"{found['variants'][one['variant']]['label']} {one['column']}" for one in members)
        console.print(
            f"[{COLOURS[word]}]{word}[/]: {len(members)} of the paper's differences" + f" ({listed})" * bool(members)
        )
