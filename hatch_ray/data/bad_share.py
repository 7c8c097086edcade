"""When so many rows cannot be used that the files are not what they should be: one rule for datasets and benchmarks."""

from __future__ import annotations

from collections import Counter

MAX_BAD_SHARE = 0.05
REASONS_SHOWN = 10


def reasons_to_stop(reasons: Counter[str], rows: int) -> list[tuple[str, int]]:
    """The ten commonest reasons with their counts where more than 5 % of the rows read are bad; else an empty list."""
    return reasons.most_common(REASONS_SHOWN) if reasons.total() > MAX_BAD_SHARE * rows else []
