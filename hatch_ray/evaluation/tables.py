"""The evaluation's tables for the terminal (100 columns)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hatch_ray.evaluation.findings import FINAL, compared, retrieval_text
from hatch_ray.evaluation.heldout import SWAPPED, read_table
from hatch_ray.rewards.score import TOTAL
from hatch_ray.run_folder import RunFolder
from hatch_ray.systems.base import System

Summary = dict[str, Any]
"""`heldout.summarise` of one evaluation."""
MARKS = {
    "yes": "[green]yes[/green]",
    "no": "[red]NO[/red]",
    "not shown": "[yellow]not shown[/yellow]",
    None: "[dim]not measured[/dim]",
}


def measures_of(system: System, summaries: Iterable[Summary]) -> list[str]:
    """The names of all measures: what stands in the summaries beside the reward's terms."""
    names = dict.fromkeys(name for summary in summaries for name in summary["overall"])
    return [name for name in names if name not in system.terms()]


def by_task(system: System, before: Summary | None, after: Summary, swapped: Summary | None) -> list[dict[str, Any]]:
    """One entry a task of `after`: {"task", "n", "terms": {tabled term: its interval in each of the three}}."""
    summaries = (before, after, swapped)
    return [
        {
            "task": task,
            "n": found[TOTAL]["n"],
            "terms": {
                name: [summary["tasks"].get(task, {}).get(name) if summary else None for summary in summaries]
                for name in system.words.tabled or system.weights()
            },
        }
        for task, found in after["tasks"].items()
    ]


MANY = 5
"""With more columns an interval stands on two lines, so that the table fits into 80 columns."""


def _cell(interval: dict[str, Any] | None, digits: int, between: str) -> str:
    if interval is None:
        return "-"
    value, low, high = (f"{interval[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"[bold]{value}[/bold]\n[dim]{low}{between}{high}[/dim]"


def model_table(system: System, labels: dict[str, str], summaries: list[Summary]) -> Table:
    """One line a model or control: every reward term's mean, the measures' medians, 95 % intervals below."""
    first, measures = summaries[0], measures_of(system, summaries)
    medians = " ({}: medians of {})".format(*system.words.medians) if measures else ""
    table = Table(
        title=f"Held-out: {first['samples']} samples of {first['scenes']} scene(s)",
        caption=(
            f"means{medians}, 95 % bootstrap intervals over {first['resampled']}s; "
            "swapped: with another question's images; best constant: the best that one fixed reply earns here"
        ),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("model", no_wrap=True)
    columns = {name: system.words.of(name) for name in [*system.terms(), *measures]}
    between = "-" if len(columns) <= MANY else "-\n"
    for shown in columns.values():
        table.add_column(shown.heading, justify="right", no_wrap=len(columns) <= MANY)
    for summary in summaries:
        name = summary["name"]
        cells = (_cell(summary["overall"].get(column), shown.digits, between) for column, shown in columns.items())
        table.add_row(labels.get(name, name), *cells, end_section=name == FINAL)
    return table


def task_table(system: System, before: Summary, after: Summary, swapped: Summary | None) -> Table:
    """By task: the rewards of two models, and of the second with swapped images."""
    table = Table(title="By task: before -> after (images swapped)", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("task", no_wrap=True)
    table.add_column("n", justify="right")
    for name in system.words.tabled or system.weights():
        table.add_column(f"{name} reward", justify="right", no_wrap=True)
    for row in by_task(system, before, after, swapped):
        cells = []
        for intervals in row["terms"].values():
            old, new, blind = (f"{found['value']:.3f}" if found else "-" for found in intervals)
            cells.append(f"{old} -> [bold]{new}[/bold] ({blind})")
        table.add_row(row["task"], str(row["n"]), *cells)
    return table


def print_evaluation(system: System, run: RunFolder, console: Console) -> None:
    """The run's tables and its claims, from RUN/eval. Raises ValueError when nothing was evaluated yet."""
    found = read_table(run, "comparison")
    if found is None:
        raise ValueError(f"{run.path} has no evaluation yet; run `hatch eval {run.path}`")
    summaries = {name: summary for name in found["models"] if (summary := read_table(run, name))}
    if not summaries:
        raise ValueError(f"{run.path} has no evaluated model; run `hatch eval {run.path}`")
    console.print(model_table(system, found["labels"], list(summaries.values())))
    before, after = compared(system, run, list(summaries))
    if before and after:
        console.print(task_table(system, summaries[before], summaries[after], summaries.get(after + SWAPPED)))
    if retrieval := read_table(run, "patch_retrieval"):
        patches = f"{retrieval['n']} patches"
        console.print(f"Patch retrieval accuracy of the image encoder ({patches}): {retrieval_text(retrieval)}")
    for text in (read_table(run, "kept") or {}).get("warnings", []):
        console.print(f"warning: {text}", markup=False)
    console.print("Shown by 95 % intervals:")
    for claim in found["claims"]:
        measured = "" if claim["measured"] == "not measured" else f": {claim['measured']}"
        console.print(f"  {MARKS[claim['holds']]}  {claim['claim']}{measured}")
