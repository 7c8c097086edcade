"""The evaluation's tables for the terminal (100 columns)."""

from __future__ import annotations

import json
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hatch_ray.evaluation.findings import FINAL, LABELS, MODELS, interval_text, patch_retrieval
from hatch_ray.evaluation.heldout import SWAPPED, read_summary
from hatch_ray.run_folder import RunFolder

COLUMNS = (("format", 2), ("action", 3), ("answer", 3), ("total", 2), ("d_t", 2), ("d_r", 1))
MARKS = {
    "yes": "[green]yes[/green]",
    "no": "[red]NO[/red]",
    "not shown": "[yellow]not shown[/yellow]",
    None: "[dim]not measured[/dim]",
}
HEADINGS = {"d_t": "d_t (m)", "d_r": "d_r (deg)"}


def _cell(interval: dict[str, Any] | None, digits: int) -> str:
    if interval is None:
        return "-"
    value, low, high = (f"{interval[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"[bold]{value}[/bold]\n[dim]{low}-{high}[/dim]"


def model_table(summaries: list[dict[str, Any]]) -> Table:
    """One line a model or control: every reward term's mean, the errors' medians, 95 % intervals below."""
    first = summaries[0]
    table = Table(
        title=f"Held-out: {first['samples']} samples of {first['scenes']} scene(s)",
        caption=(
            f"means (errors: medians of readable plans), 95 % bootstrap intervals over {first['resampled']}s; "
            "swapped: with another question's images; best constant: the best that one fixed reply earns here"
        ),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("model", no_wrap=True)
    for name, _ in COLUMNS:
        table.add_column(HEADINGS.get(name, name), justify="right", no_wrap=True)
    for summary in summaries:
        name = summary["name"]
        cells = (_cell(summary["overall"][column], digits) for column, digits in COLUMNS)
        table.add_row(LABELS.get(name, name), *cells, end_section=name == FINAL)
    return table


def task_table(before: dict[str, Any], after: dict[str, Any], swapped: dict[str, Any] | None) -> Table:
    """By task: action and answer reward of two models, and of the second with swapped images."""
    table = Table(title="By task: before -> after (images swapped)", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("task", no_wrap=True)
    table.add_column("n", justify="right")
    for heading in ("action reward", "answer reward"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task, terms in after["tasks"].items():
        cells = []
        for name in ("action", "answer"):
            values = [summary["tasks"][task][name] if summary else None for summary in (before, after, swapped)]
            old, new, blind = (f"{value['value']:.3f}" if value else "-" for value in values)
            cells.append(f"{old} -> [bold]{new}[/bold] ({blind})")
        table.add_row(task, str(terms["answer"]["n"]), *cells)
    return table


def print_evaluation(run: RunFolder, console: Console) -> None:
    """The run's tables and its claims, from RUN/eval. Raises ValueError when nothing was evaluated yet."""
    path = run.evaluation("comparison")
    if not path.exists():
        raise ValueError(f"{run.path} has no evaluation yet; run `hatch eval {run.path}`")
    found = json.loads(path.read_text(encoding="utf-8"))
    summaries = {name: summary for name in found["models"] if (summary := read_summary(run, name))}
    if not summaries:
        raise ValueError(f"{run.path} has no evaluated model; run `hatch eval {run.path}`")
    console.print(model_table(list(summaries.values())))
    models = [name for name in MODELS if name in summaries]
    if len(models) > 1:
        before = summaries.get("cold_start", summaries[models[0]]) if models[-1] == FINAL else summaries[models[0]]
        console.print(task_table(before, summaries[models[-1]], summaries.get(models[-1] + SWAPPED)))
    if (retrieval := patch_retrieval(run)) is not None:
        old, new = (
            interval_text({"value": retrieval[when]["mean"], **retrieval[when]}) for when in ("before", "after")
        )
        console.print(f"Patch retrieval accuracy of the image encoder ({retrieval['n']} patches): {old} -> {new}")
    console.print("Shown by 95 % intervals:")
    for claim in found["claims"]:
        measured = "" if claim["measured"] == "not measured" else f": {claim['measured']}"
        console.print(f"  {MARKS[claim['holds']]}  {claim['claim']}{measured}")
