"""How every stage's model answers a set that it was not trained for, and what each stage changed there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from hatch_ray.evaluation.findings import labels
from hatch_ray.evaluation.heldout import compare, read_rows, read_table
from hatch_ray.run_folder import RunFolder
from hatch_ray.systems.base import System


def transfer(
    system: System, run: RunFolder, folder: str, models: Sequence[str], bootstrap: int, seed: int
) -> dict[str, Any]:
    """{"on", "measure", "labels", "models": {model: summary}, "changes": {model: difference from the one before}}

    folder: below RUN/eval; models: in the recipe's order, evaluated there.
    """
    rows = {name: read_rows(run, f"{folder}/{name}") for name in models}
    return {
        "on": folder.removeprefix("on_"),
        "measure": system.measure,
        "labels": labels(system, models),
        "models": {name: read_table(run, f"{folder}/{name}") for name in models},
        "changes": {after: compare(rows[before], rows[after], bootstrap, seed) for before, after in pairwise(models)},
    }


def transfer_table(system: System, found: dict[str, Any]) -> Table:
    """One line a task and one for all; a column a model: the measure's mean, and below it what the stage changed."""
    first, measure = next(iter(found["models"].values())), found["measure"]
    table = Table(
        title=f"On {found['on']}: {measure}, {first['samples']} samples of {first['scenes']} scene(s)",
        caption="means; below: change from the model before, 95 % bootstrap interval; * where it excludes 0",
        title_justify="left", caption_justify="left", box=SIMPLE_HEAD,
    )  # fmt: skip
    table.add_column("task", no_wrap=True)
    table.add_column("n", justify="right")
    for name in found["models"]:
        table.add_column(found["labels"][name], justify="right", no_wrap=True)
    for task in [*first["tasks"], None]:
        cells = [_cell(_of(summary, task, measure), _of(found["changes"].get(name), task, measure))
                 for name, summary in found["models"].items()]  # fmt: skip
        count = _of(first, task, measure)
        table.add_row(task or "all", str(count["n"]) if count else "0", *cells, end_section=task is None)
    return table


def _of(summary: dict[str, Any] | None, task: str | None, measure: str) -> dict[str, Any] | None:
    if summary is None:
        return None
    found: dict[str, Any] | None = (summary["overall"] if task is None else summary["tasks"].get(task, {})).get(measure)
    return found


def _cell(mean: dict[str, Any] | None, change: dict[str, Any] | None) -> str:
    if mean is None:
        return "-"
    if change is None:
        return f"[bold]{mean['value']:.3f}[/bold]"
    mark = "*" if change["low"] > 0 or change["high"] < 0 else ""
    interval = f"{change['low']:+.2f} to {change['high']:+.2f}"
    return f"[bold]{mean['value']:.3f}[/bold]\n{change['value']:+.3f}{mark}\n[dim]{interval}[/dim]"
