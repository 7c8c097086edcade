"""The paper's Tables 1 and 4 with our row under the published ones, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from hatch_ray.benchmarks.published import LAYOUT, SOURCE, published_rows
from hatch_ray.benchmarks.results import compare_published, overall

NAME_WIDTH = 19
MARKS = {1: "▲", 0: "", -1: "▼"}
SHORT = {"spar_mv": "SPAR-MV", "spar_si": "SPAR-SI", "mindcube_tiny": "MindCube", "mmsi": "MMSI", "cvbench": "CV-Bench",
         "overall": "All"}  # fmt: skip
CAPTION = (
    f"Percent. Published rows: {SOURCE}. ± is half of our 95 % bootstrap interval. "
    "▲: ours is above that figure, ▼: below it, beyond the noise of both (95 %); no mark: within it, or not compared."
)


Block = tuple[str, Mapping[str, dict[str, Any]]]
"""A title and the summaries of one part by scorer."""


@dataclass(frozen=True)
class OurRow:
    """Our row of one table: its name, the summary of each part that was measured, and the parts to compare."""

    name: str
    summaries: Mapping[str, dict[str, Any]]
    compared: frozenset[str]


def _figure(percent: float) -> str:
    """At most four characters: one decimal, none from 99.95 on."""
    return f"{percent:.1f}" if percent < 99.95 else "100"


def _our_cells(table: int, ours: OurRow) -> list[tuple[str, str]]:
    """(figure, half interval) for every column; ("-", "") where nothing was measured."""
    cells = []
    for part, name in LAYOUT[table]:
        interval = ours.summaries[part]["columns"].get(name) if part in ours.summaries else None
        if part == "overall" and (mean := overall(ours.summaries, table)) is not None:
            cells.append((_figure(mean), ""))
        elif interval is None:
            cells.append(("-", ""))
        else:
            cells.append((_figure(interval["value"]), "±" + _figure((interval["high"] - interval["low"]) / 2)))
    return cells


def _published_cells(table: int, ours: OurRow) -> list[tuple[str, list[str]]]:
    """(model, figures with marks) for every published row; before each group (its name, [])."""
    compared = {part: summary for part, summary in ours.summaries.items() if part in ours.compared}
    marks = {
        (found["model"], found["part"], found["column"]): MARKS[found["beyond_noise"]]
        for found in compare_published(table, compared)
    }
    lines: list[tuple[str, list[str]]] = []
    for group, rows in groupby(published_rows(table), key=lambda row: row.group):
        lines.append((group, []))
        for row in rows:
            figures = zip(LAYOUT[table], row.figures, strict=True)
            lines.append(
                (row.model, [f"{figure:.1f}{marks.get((row.model, *place), '')}" for place, figure in figures])
            )
    return lines


def text_table(table: int, ours: OurRow) -> str:
    """Table 1 or 4 in plain text, at most 92 columns wide. A mark takes the place of the space after its figure."""
    parts = [part for part, _ in LAYOUT[table]]
    starts = [index > 0 and part != parts[index - 1] for index, part in enumerate(parts)]

    def line(name: str, cells: Sequence[str]) -> str:
        padded = (" " * gap + f"{cell:>4}".ljust(5) for cell, gap in zip(cells, starts, strict=True))
        return (f"{name:<{NAME_WIDTH}}" + "".join(padded)).rstrip()

    heads = "".join(SHORT[part].ljust(5 * parts.count(part) + 1) for part in dict.fromkeys(parts))
    own = _our_cells(table, ours)
    return "\n".join([
        f"Table {table}", " " * NAME_WIDTH + heads.rstrip(), line("", [name for _, name in LAYOUT[table]]),
        *(line(name, cells) if cells else f"-- {name}" for name, cells in _published_cells(table, ours)),
        "-- this run", line(ours.name[: NAME_WIDTH - 1], [figure for figure, _ in own]),
        line("", [half for _, half in own]), CAPTION, "",
    ])  # fmt: skip


def markdown_table(table: int, ours: OurRow) -> str:
    """Table 1 or 4 as Markdown."""
    heads = [f"{SHORT[part]} {name}" for part, name in LAYOUT[table]]
    own = [f"**{figure}** {half}" if half else figure for figure, half in _our_cells(table, ours)]
    empty = " |" * len(heads)
    return "\n".join([
        f"## Table {table}", "", "| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads),
        *(f"| {name} | {' | '.join(cells)} |" if cells else f"| *{name}* |{empty}"
          for name, cells in _published_cells(table, ours)),
        f"| **{ours.name}** | " + " | ".join(own) + " |", "", CAPTION, "",
    ])  # fmt: skip


def text_tasks(blocks: Sequence[Block]) -> str:
    """Per task and in all: rows, and the score under every scorer, in plain text."""
    rows = _task_rows(blocks)
    width = max(len(f"{title}: {task}") for title, task, _, _ in rows)
    lines = [f"{f'{title}: {task}':<{width}} {count:>5}  {words}" for title, task, count, words in rows]
    return "\n".join(["By task: rows, scores with 95 % intervals", *lines, ""])


def markdown_tasks(blocks: Sequence[Block]) -> str:
    """`text_tasks` as Markdown."""
    rows = [f"| {title} | {task} | {count} | {words} |" for title, task, count, words in _task_rows(blocks)]
    return "\n".join(
        ["## By task", "", "| benchmark | task | n | score (95 % interval) |", "|---|---|---:|---|", *rows, ""]
    )


def _task_rows(blocks: Sequence[Block]) -> list[tuple[str, str, int, str]]:
    rows = []
    for title, by_scorer in blocks:
        first = next(iter(by_scorer.values()))
        averages = {scorer: summary["columns"]["Avg"] for scorer, summary in by_scorer.items()}
        named = {task: {scorer: s["tasks"][task] for scorer, s in by_scorer.items()} for task in first["tasks"]}
        for task, intervals in {**named, "average": averages}.items():
            known = {scorer: interval for scorer, interval in intervals.items() if interval is not None}
            words = "  ".join(
                f"{scorer} {i['value']:>4.1f} ({i['low']:.1f} to {i['high']:.1f})" for scorer, i in known.items()
            )
            rows.append((title, task, next(iter(known.values()))["n"] if known else 0, words or "-"))
    return rows
