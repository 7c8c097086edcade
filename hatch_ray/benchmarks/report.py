"""The tables of one command: summed up from kept predictions, printed, and written beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from hatch_ray.benchmarks.columns import PARTS
from hatch_ray.benchmarks.kept import Kept
from hatch_ray.benchmarks.registry import KNOWN, ROOMS
from hatch_ray.benchmarks.results import WHOLE_SHARE, compare_published, is_whole, summarise
from hatch_ray.benchmarks.tables import OurRow, markdown_table, markdown_tasks, text_table, text_tasks
from hatch_ray.run_folder import RunFolder, write_atomic

ROOMS_NOTE = (
    "The row of this run is measured on generated rooms: the same tasks and scorers, but not SPAR-Bench. It shows the "
    "layout and is compared with nothing."
)


def counts_line(title: str, counts: Mapping[str, Any]) -> str:
    """What was asked and what was not, in one sentence."""
    parts = [f"{title}: {counts['asked']} of {counts['rows']} rows asked"]
    for key, words in (("unusable", "unusable"), ("left_out", "left out")):
        if counts[key]:
            parts.append(f"{words}: " + ", ".join(f"{count} {reason}" for reason, count in counts[key].items()))
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
        whole = {KNOWN[name].part.name for name in section if name != ROOMS and is_whole(counts[name])}
        ours = OurRow(run.path.name, chosen, frozenset(whole & chosen.keys()))
        for table in sorted({PARTS[part].table for part in chosen}):
            comparisons += compare_published(table, {part: chosen[part] for part in ours.compared})
            console.print(text_table(table, ours), markup=False)
            pages += [markdown_table(table, ours)]
        tasks = [
            (ROOMS if name == ROOMS else PARTS[part].title, by_scorer)
            for name in section
            for part, by_scorer in found[name].items()
            if by_scorer
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
