"""What a run of HATCH is to show.

Patches are matched, what was known stays, replies are well formed, GRPO helps, and the model looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hatch_ray.evaluation.findings import FINAL, Claim, Evaluations, claim, interval_text, retrieval_text
from hatch_ray.evaluation.heldout import SWAPPED, Row, in_order_of, read_table, term
from hatch_ray.evaluation.intervals import Bootstrap, Interval, all_hold, verdict
from hatch_ray.evaluation.kept import kept_verdict, row_text, worst

VALID_FORMAT = 0.95
MARGIN_SHARE = 0.5
"""A model looks when its images are worth at least this share of its margin over the best constant replies."""


def claims(found: Evaluations) -> list[Claim]:
    return [
        _retrieval(found),
        _kept(found),
        _format(found),
        found.raised("GRPO raises the mean action reward", "action"),
        found.raised("GRPO does not lower the answer reward", "answer", above=False),
        _looks(found, "action", "plan"),
        _looks(found, "answer", "answers"),
    ]


def _retrieval(found: Evaluations) -> Claim:
    text = "PaStA raises patch retrieval"
    table = read_table(found.run, "patch_retrieval")
    if table is None:
        return claim(text)
    gain = _retrieval_gain(table, found.bootstrap, found.seed)
    if gain is None:
        return claim(text, retrieval_text(table))
    return claim(text, f"{interval_text(gain)}; {retrieval_text(table)}", gain, verdict(gain))


def _retrieval_gain(table: dict[str, Any], bootstrap: int, seed: int) -> Interval | None:
    """By how much PaStA raised the share of patches that are matched: paired, pair by pair of views, by scene.

    None where RUN/eval/patch_retrieval.json has no figures by pair, as in runs of older versions.
    """
    if (pairs := table.get("by_pair")) is None:
        return None
    more = np.array(pairs["after"], dtype=np.float64) - np.array(pairs["before"], dtype=np.float64)
    return Bootstrap(pairs["scene"], bootstrap, seed).ratio(more, np.array(pairs["judged"], dtype=np.float64))


def _kept(found: Evaluations) -> Claim:
    text = "PaStA keeps what the model could: nothing gets worse"
    table = read_table(found.run, "kept")
    if not (table and table["kept"]):
        return claim(text)
    rows = table["kept"]
    return claim(text, ", ".join(map(row_text, rows)), worst(rows), kept_verdict(rows))


def _format(found: Evaluations) -> Claim:
    text = f"Cold start brings valid format to {100 * VALID_FORMAT:g} % or more"
    summary = read_table(found.run, "cold_start")
    if summary is None:
        return claim(text)
    rate = summary["overall"]["format"]
    return claim(text, interval_text(rate), rate, verdict(rate, VALID_FORMAT, above=False))


def _looks(found: Evaluations, name: str, fixed: str) -> Claim:
    """The final model earns more of a term than the best constant replies, and by looking: swapped images cost it."""
    text = (
        f"Its {name}s look: another question's images cost at least half of the margin over the best constant {fixed}"
    )
    names = (FINAL, FINAL + SWAPPED, "constant")
    if not all(known in found.rows for known in names):
        return claim(text)
    seen, swapped, constant = (found.rows[known] for known in names)
    fall, margin, surplus = falls(seen, swapped, constant, name, found.bootstrap, found.seed)
    if fall is None or margin is None or surplus is None:
        return claim(text)
    measured = (
        f"they cost {interval_text(fall)}, margin {interval_text(margin)}; "
        f"cost less half of the margin: {interval_text(surplus)}"
    )
    return claim(text, measured, surplus, all_hold(verdict(margin), verdict(fall), verdict(surplus, above=False)))


def falls(
    seen: Sequence[Row], swapped: Sequence[Row], constant: Sequence[Row], name: str, bootstrap: int, seed: int
) -> tuple[Interval | None, Interval | None, Interval | None]:
    """By how much a term of a model falls with other images; its margin over the best constant replies (chosen on these
    very samples); the fall less `MARGIN_SHARE` of the margin. None where the term was not due.
    """
    draws = Bootstrap([row["scene"] for row in seen], bootstrap, seed)
    true, blind, fixed = (term(in_order_of(seen, rows), name) for rows in (seen, swapped, constant))
    fall, margin = true - blind, true - fixed
    return draws.mean(fall), draws.mean(margin), draws.mean(fall - MARGIN_SHARE * margin)
