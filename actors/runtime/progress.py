"""A rich progress bar as a plain callback, so that what reports progress need not know the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Report = Callable[[int, int], None]
"""Called with (done, in all)."""

Told = Callable[[str, float], None]
"""Called with what has ended (a stage's name, or ANSWERED) and the seconds that it took."""
ANSWERED = "answered"
"""One model has answered its held-out questions."""


def nobody(ended: str, seconds: float) -> None:
    """Tell nobody."""


@contextmanager
def progress_bar(console: Console, label: str) -> Iterator[Report]:
    """Show a bar while the block runs; it pulses until the first report."""
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
