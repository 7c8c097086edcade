"""SPAR-Bench's scorers for one reply: `official`, `spld` and `fixed`.

official   fudan-zvg/spar (lmms-eval carries the same), with its faults: numbers published with it have them.
spld       SpatialLadder's `eval_spld`, which the tables of the HATCH paper follow: the text inside the answer block, if
           there is one, then the official scorer.
fixed      what the official rules mean: gold in the denominator, an empty answer earns 0, signed numbers, a letter must
           stand alone, view changes are read with spaces and `move_back`.

None of them is a training reward: `official` and `spld` pay for an empty and for an all-zero answer
(tests/benchmarks/test_benchmark_scorers.py); `hatch_ray.rewards` does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import numpy as np

from hatch_ray.benchmarks.item import tagged_answer
from hatch_ray.protocol.values import LETTER, VIEW_DIMENSIONS, numbers_in

Kind = Literal["choice", "number", "view_change"]

_NUMBER_TASKS = ("depth_prediction_oc", "depth_prediction_oo", "distance_prediction_oc", "distance_prediction_oo")
_CHOICE_TASKS = (
    "obj_spatial_relation_oo", "obj_spatial_relation_oc_mv", "obj_spatial_relation_oo_mv",
    "spatial_imagination_oc", "spatial_imagination_oo", "spatial_imagination_oc_mv", "spatial_imagination_oo_mv",
    "position_matching", "camera_motion_infer", "distance_infer_center_oo", "distance_infer_center_oo_mv",
)  # fmt: skip
KINDS: dict[str, Kind] = {
    **{task + suffix: "number" for suffix in ("", "_mv") for task in _NUMBER_TASKS},
    **dict.fromkeys(_CHOICE_TASKS, "choice"),
    "view_change_infer": "view_change",
}
"""The 20 tasks of SPAR-Bench. In the benchmark position_matching and camera_motion_infer are multiple choice."""

UNSIGNED = re.compile(r"(?<!\^)\d+\.\d+|(?<!\^)\d+")
TOLERANCES = 1 - np.linspace(0.5, 0.95, int((0.95 - 0.5) / 0.05 + 2))
"""Largest relative error of each of the 10 MRA thresholds, with the floating point of the official code: 35 % (1.35
for 1) and 45 % (14.5 for 10) can miss their own threshold, 5 % and 20 % meet theirs."""

OPPOSITES = (
    ("move_right", "move_left"), ("move_up", "move_down"), ("move_forward", "move_backward"),
    ("rotate_right", "rotate_left"), ("rotate_up", "rotate_down"),
)  # fmt: skip


def mean_relative_accuracy(value: float, reference: float) -> float:
    """Share of the thresholds met by |value - reference| / |reference|, or by the absolute error when it is 0."""
    error = abs((value - reference) / reference) if reference else abs(value - reference)
    return float((error <= TOLERANCES).mean())


def official_choice(prediction: str, gold: str) -> float:
    """Equal, or a part of the gold text, or beginning with it; an empty prediction is a part of any text."""
    prediction, gold = prediction.lower(), gold.lower()
    return float(prediction in gold or prediction[0] == gold)


def official_number(prediction: str, gold: str, task: str) -> float:
    """MRA of the last number of a `_mv` task (none: -1), of the first number of the others (none: 0 points).

    Numbers are read without their sign.
    """
    numbers = [float(found) for found in UNSIGNED.findall(prediction)]
    if task.endswith("_mv"):
        return mean_relative_accuracy(numbers[-1] if numbers else -1.0, float(gold))
    return mean_relative_accuracy(numbers[0], float(gold)) if numbers else 0.0


def _signed_dimensions(text: str) -> list[float]:
    """Five signed values; unknown keys (" move_up" too) are ignored. Raises ValueError: a piece is not KEY:NUMBER."""
    given: dict[str, float] = {}
    for piece in text.split(","):
        key, value = piece.split(":")
        given[key] = float(value)
    return [given.get(plus, 0.0) - given.get(minus, 0.0) for plus, minus in OPPOSITES]


def official_view_change(prediction: str, gold: str) -> float:
    """Mean of five MRAs with gold and prediction in each other's place: the error is divided by the prediction."""
    wanted = _signed_dimensions(gold)
    try:
        values = _signed_dimensions(prediction)
    except ValueError:
        return 0.0
    pairs = zip(wanted, values, strict=True)
    return float(np.mean([mean_relative_accuracy(gold_value, value) for gold_value, value in pairs]))


def fixed_choice(prediction: str, gold: str) -> float:
    """The letters agree; "C", "C.", "(C)" and "C. text" are one answer, a word that begins with the letter is none."""
    found, wanted = LETTER.match(prediction), LETTER.match(gold)
    return float(found is not None and wanted is not None and found.group(1).upper() == wanted.group(1).upper())


def fixed_number(prediction: str, gold: str) -> float:
    """MRA of the last signed number; 0 without one."""
    numbers = numbers_in(prediction)
    return mean_relative_accuracy(numbers[-1], float(gold)) if numbers else 0.0


def _read_view_change(text: str) -> dict[str, float] | None:
    """Signed value of each dimension; pieces that cannot be read are left out. None when none can be."""
    read: dict[str, float] = {}
    for piece in text.split(","):
        key, _, value = piece.partition(":")
        dimension, numbers = VIEW_DIMENSIONS.get(key.strip().lower()), numbers_in(value)
        if dimension is not None and len(numbers) == 1:
            read[dimension[0]] = read.get(dimension[0], 0.0) + dimension[1] * numbers[0]
    return read or None


def fixed_view_change(prediction: str, gold: str) -> float:
    """Mean of five MRAs against the gold values; dimensions that are not named are 0; 0 when none can be read."""
    wanted, values = _read_view_change(gold), _read_view_change(prediction)
    assert wanted is not None, "the reader lets no such gold answer through"
    if values is None:
        return 0.0
    names = ("x", "y", "z", "yaw", "pitch")
    return float(np.mean([mean_relative_accuracy(values.get(name, 0.0), wanted.get(name, 0.0)) for name in names]))


def official(completion: str, gold: str, task: str) -> float:
    """Score in [0, 1] of the whole completion. Raises KeyError for a task that SPAR-Bench does not have."""
    if KINDS[task] == "number":
        return official_number(completion, gold, task)
    return (official_choice if KINDS[task] == "choice" else official_view_change)(completion, gold)


def spld(completion: str, gold: str, task: str) -> float:
    """`official` of the text inside the first answer block, or of the whole completion when there is none."""
    return official(tagged_answer(completion), gold, task)


FIXED = {"choice": fixed_choice, "number": fixed_number, "view_change": fixed_view_change}


def fixed(completion: str, gold: str, task: str) -> float:
    """Score in [0, 1] by the rules as they are meant, on the text inside the answer block if there is one."""
    return FIXED[KINDS[task]](tagged_answer(completion), gold)


SCORERS: dict[str, Callable[[str, str, str], float]] = {"spld": spld, "official": official, "fixed": fixed}
"""Name -> (completion, gold, task) -> score."""


def check_gold(gold: str, task: str) -> str | None:
    """Why no reply to this gold answer can be scored, or None."""
    kind = KINDS[task]
    if kind == "choice":
        return None if LETTER.match(gold) else "gold_is_no_letter"
    try:
        _ = float(gold) if kind == "number" else _signed_dimensions(gold)
    except ValueError:
        return "gold_is_no_number" if kind == "number" else "gold_is_no_view_change"
    if kind == "view_change" and _read_view_change(gold) is None:
        return "gold_is_no_view_change"
    # A number that is not finite, or that the published code reads without its sign.
    return None if all(scorer(gold, gold, task) == 1 for scorer in SCORERS.values()) else "gold_earns_nothing"
