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
    return text if text.startswith(("-", "0.0 ")) else "+" + text


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
    """(title, variants in order) of each table."""
    grids = [one["variant"] for one in found["grids"]]
    return [("Table 2", TABLE_2), ("Table 3", TABLE_3), ("Figure 4", (*grids, NO_PASTA))]


def row_label(found: dict[str, Any], title: str, name: str) -> str:
    """A variant's name in one of the tables."""
    if title == "Figure 4" and name == FULL:
        grid = next(one["grid"] for one in found["grids"] if one["variant"] == FULL)
        return f"PaStA with n = {grid} (all stages)"
    return str(found["variants"][name]["label"])


def print_ablation(found: dict[str, Any], console: Console) -> None:
    """The three tables, the curves' difference, and how many differences agree with the paper's."""
    seeds = ", ".join(map(str, found["seeds"]))
    for title, names in sections(found):
        table = Table(title=f"{title}: {TITLES[title]}", title_justify="left", box=SIMPLE_HEAD)
        table.add_column("variant", no_wrap=True)
        for column in columns(found):
            table.add_column(column, justify="right")
        table.add_column("answer falls, images swapped", justify="right")
        for name in names:
            variant = found["variants"][name]
            cells = []
            for column in columns(found):
                lines = [figure(variant["columns"][column])]
                if name != FULL:
                    lines.append(change(variant["difference"][column]))
                if name in PAPER:
                    lines.append(f"[dim]paper {paper_figure(name, column)}[/dim]")
                cells.append("\n".join(lines))
            table.add_row(row_label(found, title, name), *cells, figure(variant["answer_fall"]), end_section=True)
        console.print(table)
    console.print(
        f"Answer reward in percent on {found['samples']} held-out samples of {found['scenes']} scene(s), "
        f"seeds {seeds}; 95 % intervals over scenes and seeds; second line: difference from the full recipe."
    )
    for key, values in found["curve_change"].items():
        by_seed = ", ".join(f"{value:+.3f}" for value in values)
        console.print(f"Figure 3: mean {key} reward while GRPO trains, with PaStA minus without, by seed: {by_seed}")
    for one in found["agreement"]:
        colour, label = COLOURS[one["verdict"]], found["variants"][one["variant"]]["label"]
        console.print(
            f"  [{colour}]{one['verdict']:<12}[/{colour}] {label}, {one['column']}: "
            f"paper {one['paper']:+.1f}, here {change(one['ours'])}"
        )
