"""The papers' tables: what their columns are means of (parts.yaml), and the published rows (published.yaml)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml


@dataclass(frozen=True)
class Column:
    """A mean over the rows of some groups.

    shares     None: every row counts alike. Else each group's mean with this weight (they sum to 1).
    needs_all  whether the mean exists only when every group has rows; otherwise the weights of those that have are
               brought to a sum of 1.
    """

    name: str
    groups: tuple[str, ...]
    shares: tuple[float, ...] | None = None
    needs_all: bool = False


@dataclass(frozen=True)
class Part:
    """One benchmark's block in a table. `name` is also the key of the published rows.

    hub       its dataset on the Hugging Face hub; also the folder's name below a common --root.
    patterns  the files to read, relative to the root; the first pattern that matches is used.
    table     the number of its table in published.yaml; 0: none, no published row is known.
    beside    groups that are reported by task and are part of no column.
    official  columns under the scorer `official`, where they differ.
    by        what the columns' groups are: Item.group, or Item.task.
    together  a question counts as right only when all rows of its cluster are (3DSRBench's circular and flipped forms).
    """

    name: str
    title: str
    table: int
    hub: str
    patterns: tuple[str, ...]
    columns: tuple[Column, ...]
    beside: tuple[str, ...] = ()
    official: tuple[Column, ...] | None = None
    by: Literal["group", "task"] = "group"
    together: bool = False

    @property
    def groups(self) -> tuple[str, ...]:
        """All groups of the block."""
        return tuple(dict.fromkeys(group for column in self.columns for group in column.groups)) + self.beside

    def under(self, scorer: str) -> tuple[Column, ...]:
        """The columns as this scorer's authors make them."""
        return self.official if scorer == "official" and self.official is not None else self.columns


def _column(name: str, entry: Any) -> Column:
    """A list of groups, or {groups, shares}."""
    if isinstance(entry, list):
        return Column(name, tuple(entry))
    return Column(name, tuple(entry["groups"]), tuple(entry["shares"]), needs_all=True)


def _task_means(column: Column, without: Collection[str]) -> Column:
    groups = tuple(group for group in column.groups if group not in without)
    return Column(column.name, groups, (1 / len(groups),) * len(groups))


def _part(name: str, entry: dict[str, Any]) -> Part:
    columns = tuple(_column(*column) for column in entry["columns"].items())
    without = entry.get("official_without")
    means = None if without is None else tuple(_task_means(each, without.get(each.name, ())) for each in columns)
    titles = (entry["title"], entry["table"], entry["hub"], tuple(entry["patterns"]))
    beside, by = tuple(entry.get("beside", ())), entry.get("by", "group")
    return Part(name, *titles, columns, beside, means, by, entry.get("together", False))


_PARTS = yaml.safe_load((Path(__file__).parent / "parts.yaml").read_text(encoding="utf-8"))
PARTS = {name: _part(name, entry) for name, entry in _PARTS.items()}

_PUBLISHED = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))
SOURCES: dict[int, str] = {
    number: table.get("source", _PUBLISHED["source"]) for number, table in _PUBLISHED["tables"].items()
}
TITLES: dict[int, str] = {
    number: table.get("title", f"Table {number}") for number, table in _PUBLISHED["tables"].items()
}
LAYOUT: dict[int, tuple[tuple[str, str], ...]] = {
    number: tuple((part, column) for part, columns in table["columns"].items() for column in columns)
    for number, table in _PUBLISHED["tables"].items()
}
"""Table -> its columns: (part of PARTS, column)."""
TINY_GROUP: str = _PUBLISHED["tiny_group"]
TINY_ROWS: dict[str, dict[str, int]] = _PUBLISHED["tiny_rows"]


@dataclass(frozen=True)
class PublishedRow:
    """A model's figures in one table, percent, in the order of LAYOUT."""

    model: str
    group: str
    figures: tuple[float, ...]


def published_rows(table: int) -> list[PublishedRow]:
    """The rows of a table, in the paper's order."""
    groups = _PUBLISHED["tables"][table]["rows"]
    return [PublishedRow(model, group, tuple(row)) for group, rows in groups.items() for model, row in rows.items()]
