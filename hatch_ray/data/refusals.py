"""What of a dataset cannot be used: counted by reason, with examples; too much of it stops the reading."""

from __future__ import annotations

from collections import Counter
from typing import Any

EXAMPLES_A_REASON = 3
MAX_BAD_SHARE = 0.05
REASONS_SHOWN = 10
OF_SPAR = "Complete the download or leave these tasks or sources out (data.tasks, data.spar.sources)"


class Refusal(ValueError):
    """A row or frame that cannot be used: a stable reason for counting, and what is wrong with this one."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def reasons_to_stop(reasons: Counter[str], rows: int) -> list[tuple[str, int]]:
    """The ten commonest reasons with their counts where more than 5 % of the rows read are bad; else an empty list."""
    return reasons.most_common(REASONS_SHOWN) if reasons.total() > MAX_BAD_SHARE * rows else []


class BadRows:
    """Counts rows read and rows refused."""

    def __init__(self, place: str, advice: str = OF_SPAR) -> None:
        """advice: what to do where too many are refused."""
        self.place, self.advice = place, advice
        self.read = 0
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, refusal: Refusal, where: str) -> None:
        """Count a refused row; `where` names its file and line."""
        reason = refusal.reason.replace(" ", "_")
        self.reasons[reason] += 1
        if self.reasons[reason] <= EXAMPLES_A_REASON:
            self.examples.setdefault(reason, []).append(f"{where}: {refusal.detail}")

    def check(self) -> None:
        """Raise ValueError with the commonest reasons when more than 5 % of the rows read were refused."""
        if not (worst := reasons_to_stop(self.reasons, self.read)):
            return
        reasons = "; ".join(f"{count} {reason} (first: {self.examples[reason][0]})" for reason, count in worst)
        raise ValueError(
            f"{self.reasons.total()} of {self.read} rows of {self.place} cannot be used, "
            f"more than {MAX_BAD_SHARE:.0%}: {reasons}. {self.advice}"
        )

    def summary(self) -> dict[str, Any]:
        """Counts and examples for a dataset's summary."""
        return {"rows_read": self.read, "rows_refused": dict(self.reasons.most_common()), "examples": self.examples}
