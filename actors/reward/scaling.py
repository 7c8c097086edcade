"""How many reward actors a queue calls for: a rule without Ray, of what was measured alone.

    work that waits (items x seconds an item) / reward_actors.queue_seconds = actors that are called for

More are called for at once, fewer when the last CALM batches all did with fewer: a burst does not end actors that the
next one needs again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

CALM = 5
"""Batches in a row that did with fewer before the number falls."""
NEWEST = 0.3
"""Weight of the newest measurement in the mean seconds of an item."""
LARGEST_PART = 16
"""Items in one call, at most."""
PART_SECONDS = 0.1
"""A call should last this long: then the transport costs little, and the last call of a batch is soon done."""


class QueueRule:
    """Between `least` and `most` actors, none of which has more than `queue_seconds` of work waiting."""

    def __init__(self, least: int, most: int, queue_seconds: float) -> None:
        self.least, self.most, self.queue_seconds = least, most, queue_seconds
        self.seconds_per_item: float | None = None
        self._peak = least
        self._recent: deque[int] = deque(maxlen=CALM)

    def measured(self, items: int, seconds: float) -> None:
        """A call of so many items took so long."""
        found = seconds / items
        known = self.seconds_per_item
        self.seconds_per_item = found if known is None else (1 - NEWEST) * known + NEWEST * found

    def wanted(self, waiting: int, actors: int, running: Sequence[tuple[float, int]] = ()) -> int:
        """How many there should be while `waiting` items are not done; never fewer than `actors`, so far as allowed.

        running: seconds so far and items of each call at work. One that already takes longer than known counts.
        """
        each = max([self.seconds_per_item or 0.0, *(seconds / items for seconds, items in running)])
        called = min(self.most, max(self.least, math.ceil(waiting * each / self.queue_seconds)), max(1, waiting))
        self._peak = max(self._peak, called)
        return max(actors, called)

    def batch_done(self, actors: int) -> int:
        """How many there should be until the next batch."""
        self._recent.append(self._peak)
        self._peak = self.least
        calm = len(self._recent) == CALM
        return max(self.least, min(actors, max(self._recent))) if calm else actors

    def part(self, items: int) -> int:
        """Items in a call of a batch."""
        if self.seconds_per_item is None:  # nothing known: parts so small that all actors there may be would have some
            return max(1, min(LARGEST_PART, items // (4 * self.most)))
        return max(1, min(LARGEST_PART, int(PART_SECONDS / max(self.seconds_per_item, 1e-6))))
