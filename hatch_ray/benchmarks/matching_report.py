"""The tables of the benchmarks of wide-baseline matching: published rows and ours, blind replies beside it, and parts.

They are written to RUN/benchmarks/NAME/tables.md and results.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from hatch_ray.benchmarks.kept import Kept
from hatch_ray.benchmarks.reasonmatch import case_of_gold
from hatch_ray.benchmarks.registry import KNOWN
from hatch_ray.benchmarks.report import MARKS, counts_line
from hatch_ray.benchmarks.results import beyond_noise, is_whole
from hatch_ray.evaluation.intervals import Interval
from hatch_ray.run_folder import RunFolder, write_atomic
from hatch_ray.systems.matching.measures import (
    LEGEND,
    MEASURES,
    Measured,
    figure,
    markdown_table,
    text_table,
)

PUBLISHED = "reasonmatch"
"""The one whose figures were published."""
WHOLE = ("f1", "precision", "recall")
SCENES, LEVELS = ("indoor", "outdoor", "object"), ("L1", "L2", "L3")
CELLS = [(measure, "") for measure in WHOLE] + [("f1", f"{scene} {level}") for scene in SCENES for level in LEVELS]
"""Columns of the published table: a measure, and of which part (all where it is empty)."""
PARTS = ("source", "level", "scene", "overlap", "spread")
SHOWN = ("f1", "precision", "recall", "accuracy", "none_recall", "parsed")
CAPTION = (
    "Percent; indoor, outdoor, object: F1 by level. ± is half of our 95 % bootstrap interval. ▲: ours is above that "
    "figure, ▼: below it, beyond the noise of both (95 %)."
)
Table = tuple[str, list[str], list[list[str]]]
"""A title, heads and rows."""


@lru_cache(maxsize=1)
def published() -> dict[str, Any]:
    """Source, and rows by model."""
    found: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "reasonmatch.yaml").read_text(encoding="utf-8"))
    return found


def report_matching(run: RunFolder, names: Sequence[str], bootstrap: int, seed: int, console: Console) -> None:
    """Print and write the tables of each benchmark. Raises ValueError for one of which no row could be asked."""
    for name in names:
        kept = Kept(run, name)
        counts, rows = kept.counts(), kept.predictions()
        said = counts_line(KNOWN[name].title, counts)
        if not rows:
            raise ValueError(f"no row could be asked ({said}); raise model.max_length or lower eval.max_new_tokens")
        measured = measure(run.path.name, rows, bootstrap, seed)
        tables = [_whole(measured), _by_part(measured)]
        compared: list[dict[str, Any]] = []
        if name == PUBLISHED:
            compared = compare(measured, is_whole(counts))
            tables.insert(0, _beside_published(measured, compared))
        for title, heads, lines in tables:
            console.print(f"-- {title}\n{text_table(heads, lines)}\n", markup=False)
        console.print(f"{said}\n{LEGEND}", markup=False)
        pages = [f"## {title}\n\n{markdown_table(heads, lines)}\n" for title, heads, lines in tables]
        page = [f"# {KNOWN[name].title}: {run.path.name}\n", *pages, f"- {said}", f"- {LEGEND}", ""]
        write_atomic(kept.path / "tables.md", "\n".join(page))
        results = {"run": run.path.name, "counts": counts, "comparison": compared} | figures(measured)
        write_atomic(kept.path / "results.json", json.dumps(results, indent=2, allow_nan=False))
        console.print(f"tables: {kept.path / 'tables.md'}; figures: {kept.path / 'results.json'}", markup=False)


def measure(model: str, rows: Sequence[Mapping[str, Any]], bootstrap: int, seed: int) -> Measured:
    """The model's replies, and blind ones to the same questions."""
    measured = Measured([case_of_gold(row["gold"], row["cluster"], row["parts"]) for row in rows], bootstrap, seed)
    measured.add(model, [row["completion"] for row in rows])
    measured.add_blind()
    return measured


def figures(measured: Measured) -> dict[str, Any]:
    """Every line's measures of all questions, and the model's by part."""
    model = next(iter(measured.lines))
    parts = {
        kind: {value: {each: measured.of(model, each, part) for each in MEASURES} for value, part in found.items()}
        for kind, found in _parts(measured).items()
    }
    return {"lines": {name: measured.whole(name) for name in measured.lines}, "parts": parts}


def _parts(measured: Measured) -> dict[str, dict[str, np.ndarray]]:
    """By kind and value; kinds that no question tells are left out."""
    found = {kind: measured.parts(kind) for kind in PARTS} | {"scene and level": measured.parts("scene", "level")}
    known = {name for case in measured.cases for name in case.parts}
    return {kind: parts for kind, parts in found.items() if set(kind.split(" and ")) <= known}


def compare(measured: Measured, whole: bool) -> list[dict[str, Any]]:
    """Every published figure that is measured here too, and whether ours differs from it beyond the noise of both."""
    ours = _ours(measured) if whole else {}
    found = []
    for model, row in published()["rows"].items():
        for cell, theirs in _cells(row).items():
            if (own := ours.get(cell)) is not None:
                found.append({
                    "model": model, "measure": cell[0], "part": cell[1] or "all", "published": theirs,
                    "ours": own["value"], "beyond_noise": beyond_noise(own, theirs, own["n"]),
                    "source": published()["source"],
                })  # fmt: skip
    return found


def _cells(row: Mapping[str, Sequence[float]]) -> dict[tuple[str, str], float]:
    named = {("f1", f"{scene} {level}"): row[scene][place] for scene in SCENES if scene in row
             for place, level in enumerate(LEVELS)}  # fmt: skip
    return dict(zip(((each, "") for each in WHOLE), row["whole"], strict=True)) | named


def _ours(measured: Measured) -> dict[tuple[str, str], Interval | None]:
    model, both = next(iter(measured.lines)), measured.parts("scene", "level")
    return {
        (each, part): measured.of(model, each, both[part] if part else None)
        for each, part in CELLS
        if not part or part in both
    }


def _beside_published(measured: Measured, compared: Sequence[Mapping[str, Any]]) -> Table:
    marks = {(one["model"], one["measure"], one["part"]): MARKS[one["beyond_noise"]] for one in compared}
    heads = ["", *(part or MEASURES[each] for each, part in CELLS)]
    rows = []
    for model, row in published()["rows"].items():
        theirs = _cells(row)
        rows.append([model, *(
            f"{theirs[cell]:.1f}{marks.get((model, cell[0], cell[1] or 'all'), '')}" if cell in theirs else "-"
            for cell in CELLS
        )])  # fmt: skip
    ours = _ours(measured)
    rows.append([next(iter(measured.lines)), *(figure(ours.get(cell), True) for cell in CELLS)])
    return f"Published ({published()['source']}) and this run. {CAPTION}", heads, rows


def _whole(measured: Measured) -> Table:
    return f"All {len(measured.cases)} questions, blind replies beside", ["", *MEASURES.values()], measured.rows()


def _by_part(measured: Measured) -> Table:
    model = next(iter(measured.lines))
    rows = [
        [f"{kind}: {value}", str(int(part.sum())), *(figure(measured.of(model, each, part), True) for each in SHOWN)]
        for kind, found in _parts(measured).items()
        for value, part in found.items()
    ]
    return "By part", ["", "n", *(MEASURES[each] for each in SHOWN)], rows
