"""Bins of overlap that tables are told by, widest baseline first.

Below 0.25 classical matchers break down on real frames, so that is where a model can be better than geometry. Overlaps
of depth are of all pixels of the first view.
"""

from __future__ import annotations

EDGES = (0.1, 0.25, 0.45, 0.7)
BINS = tuple(f"{low:.2f} to {high:.2f}" for low, high in zip((0.0, *EDGES), (*EDGES, 1.0), strict=True))
"""Of pairs made here, by what the views share."""


def bin_of(omega: float) -> str:
    """The name of an overlap's bin; an edge belongs to the bin above it."""
    return BINS[sum(omega >= edge for edge in EDGES)]
