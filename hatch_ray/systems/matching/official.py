"""ReasonMatch-Bench's own metric: aim-uofa/ReasonMatch f5268747, evaluate/matchbench/utils.py.

It reads the first JSON fence of a whole reply, a draft inside the reasoning too, else all from the first brace to the
last. Keys and values are compared as text. Gold holds matched pairs alone, so that a right "none" earns nothing; what a
reply matches to a mark that is not in gold costs precision.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

FENCE, FENCE_END = re.compile("```json", re.IGNORECASE), "```"


class Official(NamedTuple):
    """Of one reply, 0 to 1; the benchmark's figures are their means. read: whether it holds an object."""

    precision: float
    recall: float
    f1: float
    read: bool


def official(text: str, gold: Mapping[str, str]) -> Official:
    """Precision, recall and F1 of any text; all 0 where no object is read, or an empty one."""
    found = official_pairs(text)
    said = {key: value for key, value in (found or {}).items() if not _is_none(value)}
    right = sum(
        key in gold and not isinstance(value, dict | list) and str(value) == gold[key] for key, value in said.items()
    )
    precision, recall = right / max(1, len(said)), right / max(1, len(gold))
    both = precision + recall
    return Official(precision, recall, 2 * precision * recall / both if both else 0.0, found is not None)


def official_pairs(text: str) -> dict[str, Any] | None:
    """The object that the authors' script reads in a reply; None where it reads none."""
    fence = FENCE.search(text)
    end = text.find(FENCE_END, fence.end()) if fence else -1
    left, right = (fence.end(), end) if fence and end >= 0 else (text.find("{"), text.rfind("}") + 1)
    if not 0 <= left < right:
        return None
    try:
        found = json.loads(text[left:right])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.lower() == "none")
