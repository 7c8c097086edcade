"""The paper's published rows, read from published.yaml, which names their source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

_FILE = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))
SOURCE: str = _FILE["source"]
LAYOUT: dict[int, tuple[tuple[str, str], ...]] = {
    number: tuple((part, column) for part, columns in table["columns"].items() for column in columns)
    for number, table in _FILE["tables"].items()
}
"""Table -> its columns: (part of `columns.PARTS`, column)."""
TINY_GROUP: str = _FILE["tiny_group"]
TINY_ROWS: dict[str, dict[str, int]] = _FILE["tiny_rows"]


@dataclass(frozen=True)
class PublishedRow:
    """A model's figures in one table, percent, in the order of LAYOUT."""

    model: str
    group: str
    figures: tuple[float, ...]


def published_rows(table: int) -> list[PublishedRow]:
    """The rows of Table 1 or 4, in the paper's order."""
    groups = _FILE["tables"][table]["rows"]
    return [PublishedRow(model, group, tuple(row)) for group, rows in groups.items() for model, row in rows.items()]
