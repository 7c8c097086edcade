"""Rows that cannot be used: counted by reason, with examples; too many of them stop the reading."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hatch_ray.data.bad_share import MAX_BAD_SHARE, reasons_to_stop

EXAMPLES_A_REASON = 3


class RowRefused(ValueError):
    """A row that cannot be used: a stable reason for counting, and what is wrong with this one."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class BadRows:
    """Counts rows read and rows refused."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.read = 0
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, refusal: RowRefused, where: str) -> None:
        """Count a refused row; `where` names its file and line."""
        self.reasons[refusal.reason] += 1
        examples = self.examples.setdefault(refusal.reason, [])
        if len(examples) < EXAMPLES_A_REASON:
            examples.append(f"{where}: {refusal.detail}")

    def check(self) -> None:
        """Raise ValueError with the commonest reasons when more than 5 % of the rows read were refused."""
        if not (worst := reasons_to_stop(self.reasons, self.read)):
            return
        reasons = "; ".join(f"{count} {reason} (first: {self.examples[reason][0]})" for reason, count in worst)
        raise ValueError(
            f"{self.reasons.total()} of {self.read} rows of {self.place} cannot be used, "
            f"more than {MAX_BAD_SHARE:.0%}: {reasons}. "
            "Complete the download or leave these tasks or sources out (data.tasks, data.spar.sources)"
        )

    def summary(self) -> dict[str, Any]:
        """Counts and examples for a dataset's summary."""
        return {"rows_read": self.read, "rows_refused": dict(self.reasons.most_common()), "examples": self.examples}
