"""The tables of one command, summed up from kept predictions, printed, and written as Markdown beside them.

They are the papers' tables (published.yaml) with our row under the published ones, and the scores by task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console

from hatch_ray.benchmarks.kept import Kept
from hatch_ray.benchmarks.paper import LAYOUT, PARTS, SOURCES, TITLES, published_rows
from hatch_ray.benchmarks.registry import KNOWN, ROOMS, with_first
from hatch_ray.benchmarks.results import WHOLE_SHARE, compare_published, is_whole, overall, summarise
from hatch_ray.run_folder import RunFolder, write_atomic

NAME_WIDTH = 19
MARKS = {1: "▲", 0: "", -1: "▼"}
SHORT = {"spar_mv": "SPAR-MV", "spar_si": "SPAR-SI", "mindcube_tiny": "MindCube", "mmsi": "MMSI", "cvbench": "CV-Bench",
         "overall": "All", "3dsrbench": "3DSRBench", "cvbench_tasks": "CV-Bench", "blink": "BLINK",
         "mmsi_types": "MMSI"}  # fmt: skip
CAPTION = (
    "Percent. Published rows: {}. ± is half of our 95 % bootstrap interval. "
    "▲: ours is above that figure, ▼: below it, beyond the noise of both (95 %); no mark: within it, or not compared."
)
ROOMS_NOTE = (
    "The row of this run is measured on generated rooms: the same tasks and scorers, but not SPAR-Bench. It shows the "
    "layout and is compared with nothing."
)
Block = tuple[str, Mapping[str, dict[str, Any]]]
"""A title and the summaries of one part by scorer."""
Cells = list[tuple[str, str]]
Rows = list[tuple[str, list[str]]]
"""`_our_cells`, `_published_cells`."""


def counts_line(title: str, counts: Mapping[str, Any]) -> str:
    """What was asked and what was not, in one sentence."""
    parts = [f"{title}: {counts['asked']} of {counts['rows']} rows asked"]
    for key, words in (("unusable", "unusable"), ("left_out", "left out")):
        if counts[key]:
            first = counts.get("first", {})
            named = (with_first(f"{count} {reason}", first.get(reason)) for reason, count in counts[key].items())
            parts.append(f"{words}: " + ", ".join(named))
    if not is_whole(counts):
        parts.append(f"under {WHOLE_SHARE:.0%}, so not compared with published rows")
    return "; ".join(parts)


def report_benchmarks(
    run: RunFolder, names: Sequence[str], scorer: str, bootstrap: int, seed: int, console: Console
) -> None:
    """Print the tables of these benchmarks and write RUN/benchmarks/results.json and tables.md.

    scorer: SPAR-Bench's for the tables; the others have one each.
    """
    counts = {name: Kept(run, name).counts() for name in names}
    said = {name: counts_line(KNOWN[name].title, counts[name]) for name in names}
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for name in names:
        rows = Kept(run, name).predictions()
        found[name] = {}
        for part in KNOWN[name].parts:
            scorers = rows[0]["scores"] if rows else {}
            summaries = {each: summarise(part, rows, each, bootstrap, seed) for each in scorers}
            found[name][part.name] = {each: summary for each, summary in summaries.items() if summary is not None}
        if not any(found[name].values()):
            raise ValueError(
                f"no row could be asked ({said[name]}); raise model.max_images or model.max_length, or lower "
                "eval.max_new_tokens"
            )
    pages, comparisons = [f"# Benchmarks of {run.path.name}", ""], []
    for section in ([name for name in names if name != ROOMS], [name for name in names if name == ROOMS]):
        chosen = {
            part: by_scorer.get(scorer) or next(iter(by_scorer.values()))
            for name in section
            for part, by_scorer in found[name].items()
            if by_scorer
        }
        asked = [name for name in section if name != ROOMS and is_whole(counts[name])]
        whole = {part.name for name in asked for part in KNOWN[name].parts}
        for table in sorted({PARTS[part].table for part in chosen} - {0}):
            compared = compare_published(table, {part: chosen[part] for part in whole & chosen.keys()})
            comparisons += compared
            cells = (run.path.name, _our_cells(table, chosen), _published_cells(table, compared))
            console.print(text_table(table, *cells), markup=False)
            pages.append(markdown_table(table, *cells))
        tasks = [
            (ROOMS if name == ROOMS else PARTS[part].title, by_scorer)
            for name in section
            for part, by_scorer in found[name].items()
            if by_scorer and PARTS[part].by == "group"
        ]
        if tasks:
            lines = [said[name] for name in section] + [ROOMS_NOTE] * (section == [ROOMS])
            console.print(text_tasks(tasks), markup=False)
            console.print("\n".join(lines), markup=False)
            pages += [markdown_tasks(tasks), *(f"- {line}" for line in lines), ""]
    results = {"run": run.path.name, "scorer": scorer, "counts": counts, "summaries": found, "comparison": comparisons}
    folder = run.path / "benchmarks"
    write_atomic(folder / "results.json", json.dumps(results, indent=2, allow_nan=False))
    write_atomic(folder / "tables.md", "\n".join(pages))
    console.print(f"tables: {folder / 'tables.md'}; figures: {folder / 'results.json'}", markup=False)


def _figure(percent: float) -> str:
    """At most four characters: one decimal, none from 99.95 on."""
    return f"{percent:.1f}" if percent < 99.95 else "100"


def _our_cells(table: int, ours: Mapping[str, dict[str, Any]]) -> Cells:
    """(figure, half interval) for every column; ("-", "") where nothing was measured."""
    cells = []
    for part, name in LAYOUT[table]:
        interval = ours[part]["columns"].get(name) if part in ours else None
        if part == "overall" and (mean := overall(ours, table)) is not None:
            cells.append((_figure(mean), ""))
        elif interval is None:
            cells.append(("-", ""))
        else:
            cells.append((_figure(interval["value"]), "±" + _figure((interval["high"] - interval["low"]) / 2)))
    return cells


def _published_cells(table: int, compared: Sequence[dict[str, Any]]) -> Rows:
    """(model, figures with marks) for every published row; before each group (its name, [])."""
    marks = {(one["model"], one["part"], one["column"]): MARKS[one["beyond_noise"]] for one in compared}
    lines: Rows = []
    for group, rows in groupby(published_rows(table), key=lambda row: row.group):
        lines.append((group, []))
        for row in rows:
            figures = zip(LAYOUT[table], row.figures, strict=True)
            lines.append(
                (row.model, [f"{figure:.1f}{marks.get((row.model, *place), '')}" for place, figure in figures])
            )
    return lines


def text_table(table: int, name: str, own: Cells, published: Rows) -> str:
    """A table in plain text, at most 92 columns wide. A mark takes the place of the space after its figure."""
    parts = [part for part, _ in LAYOUT[table]]
    starts = [index > 0 and part != parts[index - 1] for index, part in enumerate(parts)]

    def line(name: str, cells: Sequence[str]) -> str:
        padded = (" " * gap + f"{cell:>4}".ljust(5) for cell, gap in zip(cells, starts, strict=True))
        return (f"{name:<{NAME_WIDTH}}" + "".join(padded)).rstrip()

    heads = "".join(SHORT[part].ljust(5 * parts.count(part) + 1) for part in dict.fromkeys(parts))
    return "\n".join([
        TITLES[table], " " * NAME_WIDTH + heads.rstrip(), line("", [column for _, column in LAYOUT[table]]),
        *(line(model, cells) if cells else f"-- {model}" for model, cells in published),
        "-- this run", line(name[: NAME_WIDTH - 1], [figure for figure, _ in own]),
        line("", [half for _, half in own]), CAPTION.format(SOURCES[table]), "",
    ])  # fmt: skip


def markdown_table(table: int, name: str, own: Cells, published: Rows) -> str:
    """A table as Markdown."""
    heads = [f"{SHORT[part]} {name}" for part, name in LAYOUT[table]]
    ours = [f"**{figure}** {half}" if half else figure for figure, half in own]
    empty = " |" * len(heads)
    return "\n".join([
        f"## {TITLES[table]}", "", "| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads),
        *(f"| {model} | {' | '.join(cells)} |" if cells else f"| *{model}* |{empty}" for model, cells in published),
        f"| **{name}** | " + " | ".join(ours) + " |", "", CAPTION.format(SOURCES[table]), "",
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
