"""Which rotation convention the released view_change_infer answers follow, measured on rows with poses.

SPAR publishes neither the convention nor the code. Both candidates of `geometry.view_change` are computed from the
poses and compared with the answers; rows on which the two differ decide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import typer

from hatch_ray.cli import run_command
from hatch_ray.data.camera_files import load_pose
from hatch_ray.data.refusals import BadRows, Refusal
from hatch_ray.data.spar.index import open_index
from hatch_ray.data.spar.layout import FORMATS, SOURCES, TASKS, UP, beside, spar_folder
from hatch_ray.data.spar.record import Record, read_record
from hatch_ray.data.spar.views import pose_in_metres
from hatch_ray.geometry.view_change import VIEW_CHANGE_WORDS, Convention, view_change

app = typer.Typer(add_completion=False)

TASK = "view_change_infer"
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
TRANSLATION, ROTATION = ("right", "up", "forward"), ("pitch", "yaw")
PIECE = re.compile(r"\s*(\w+)\s*:\s*(-?\d+(?:\.\d+)?)\s*")
TELLING_DEG = 3.0
"""Rows on which the conventions' yaw or pitch differ by this much can tell them apart (answers are whole degrees)."""
FEWEST_TELLING = 20
CLEARLY = 0.5
"""The better convention's mean error must be below this share of the other's."""
LARGEST_ERROR_M = 0.2
"""A larger mean error of the translation says that poses, axes or units are not what is assumed."""


@dataclass(frozen=True)
class ConventionCheck:
    """Errors of both conventions against the released answers.

    rotation_deg     convention -> mean absolute error of yaw and pitch, all rows and telling rows.
    nearer           convention -> telling rows to which it is the nearer one.
    translation_m    mean absolute error of right, up, forward: the same for both conventions.
    verdict          the convention that agrees, or None when the rows cannot tell.
    """

    rows: int
    telling: int
    refused: dict[str, int]
    translation_m: dict[str, float]
    rotation_deg: dict[Convention, dict[str, float]]
    telling_deg: dict[Convention, float]
    nearer: dict[Convention, int]
    verdict: Convention | None
    reason: str


def check_conventions(root: Path, index: Path | None = None, limit: int = 2000, seed: int = 0) -> ConventionCheck:
    """Compare up to `limit` random rows, of every split and source.

    Raises ValueError when the tree has no such row, or none with poses and a readable answer.
    """
    folder = spar_folder(root)
    found = open_index(folder, index or folder / "hatch-index")
    tasks = np.array([name == TASK for name in found.tasks] or [False])
    rows = np.flatnonzero(tasks[found.rows["task"]] & (found.rows["format"] == FORMATS.index("fill")))
    if not len(rows):
        raise ValueError(f"{folder} has no {TASK} row of format fill; unpack SPAR-7M-RGBD there")
    bad = BadRows(str(folder))
    answers: list[dict[str, float]] = []
    computed: dict[Convention, list[dict[str, float]]] = {name: [] for name in CONVENTIONS}
    for row in np.random.default_rng(seed).permutation(rows)[:limit]:
        bad.read += 1
        try:
            record = read_record(found.record(int(row)), "fill")
            answer = parse_answer(record.answer)
            poses = _poses(folder, SOURCES[found.rows[row]["source"]], record)
            changes = {name: _change(*poses, name) for name in CONVENTIONS}
        except Refusal as refusal:
            bad.add(refusal, found.where(int(row)))
            continue
        answers.append(answer)
        for name, change in changes.items():
            computed[name].append(change)
    if not answers:
        reasons = "; ".join(f"{count} {reason}: {bad.examples[reason][0]}" for reason, count in bad.reasons.items())
        raise ValueError(f"no {TASK} row of {folder} can be compared ({reasons}); it needs SPAR-7M-RGBD's poses")
    return _judge(answers, computed, dict(bad.reasons))


def parse_answer(text: str) -> dict[str, float]:
    """ "move_left:2.6,move_down:0.1,..." as signed numbers; dimensions that are not named are 0. Raises Refusal."""
    values = dict.fromkeys(TRANSLATION + ROTATION, 0.0)
    for piece in text.strip().rstrip(".,").split(","):
        found = PIECE.fullmatch(piece)
        if not found or found[1] not in VIEW_CHANGE_WORDS:
            raise Refusal("answer_is_not_a_view_change", repr(text)[:120])
        name, sign = VIEW_CHANGE_WORDS[found[1]]
        values[name] = sign * float(found[2])
    return values


def _poses(root: Path, source: str, record: Record) -> tuple[np.ndarray, np.ndarray]:
    poses = []
    for image in record.images[: TASKS[TASK].views]:
        poses.append(pose_in_metres(load_pose(root / source / "images" / beside(image, "pose")), source))
    return poses[0], poses[1]


def _change(first: np.ndarray, second: np.ndarray, convention: Convention) -> dict[str, float]:
    try:
        return view_change(first, second, UP, convention)
    except ValueError as error:
        raise Refusal("no_view_change", str(error)) from None


def _turn_error(a: float, b: float) -> float:
    """Degrees between two angles, 0 to 180."""
    return abs((a - b + 180) % 360 - 180)


def _judge(
    answers: list[dict[str, float]], computed: dict[Convention, list[dict[str, float]]], refused: dict[str, int]
) -> ConventionCheck:
    def mean(values: np.ndarray) -> float:
        return round(float(values.mean()), 3) if len(values) else float("nan")

    errors = {
        name: np.array([[_turn_error(c[d], a[d]) for d in ROTATION] for c, a in zip(changes, answers, strict=True)])
        for name, changes in computed.items()
    }
    one, other = (computed[name] for name in CONVENTIONS)
    telling = np.array(
        [max(_turn_error(a[d], b[d]) for d in ROTATION) >= TELLING_DEG for a, b in zip(one, other, strict=True)]
    )
    translation = {
        d: mean(np.array([abs(c[d] - a[d]) for c, a in zip(one, answers, strict=True)])) for d in TRANSLATION
    }
    total = {name: error.sum(axis=1) for name, error in errors.items()}
    best = min(CONVENTIONS, key=lambda name: total[name][telling].sum())
    rest = next(name for name in CONVENTIONS if name != best)
    means = {name: mean(total[name][telling]) for name in CONVENTIONS}
    verdict: Convention | None = None
    if max(translation.values()) > LARGEST_ERROR_M:
        reason = f"the translation itself disagrees by up to {max(translation.values())} m: poses, axes or units differ"
    elif telling.sum() < FEWEST_TELLING:
        reason = f"only {telling.sum()} rows tell the conventions apart, {FEWEST_TELLING} are needed"
    elif means[best] > CLEARLY * means[rest]:
        reason = f"neither is clearly nearer ({means[best]} against {means[rest]} degrees)"
    else:
        verdict, reason = best, f"{means[best]} against {means[rest]} degrees on the rows that tell"
    return ConventionCheck(
        rows=len(answers),
        telling=int(telling.sum()),
        refused=refused,
        translation_m=translation,
        rotation_deg={name: {d: mean(error[:, k]) for k, d in enumerate(ROTATION)} for name, error in errors.items()},
        telling_deg=means,
        nearer={
            best: int((total[best] < total[rest])[telling].sum()),
            rest: int((total[rest] < total[best])[telling].sum()),
        },
        verdict=verdict,
        reason=reason,
    )


@app.command()
def main(
    root: Annotated[Path, typer.Argument(help="folder of SPAR-7M-RGBD", metavar="ROOT")],
    limit: Annotated[int, typer.Option(min=1, help="rows to compare, drawn at random")] = 2000,
    index: Annotated[Path | None, typer.Option(help="folder of the row index; default: beside the sources")] = None,
) -> None:
    """Print which rotation convention the released view_change_infer answers follow, from rows with poses."""
    check = check_conventions(root, index, limit)
    refused = ", ".join(f"{count} {reason}" for reason, count in check.refused.items()) or "none"
    print(f"rows compared: {check.rows} (refused: {refused})")
    print("mean translation error, m: " + ", ".join(f"{name} {value:g}" for name, value in check.translation_m.items()))
    for name, errors in check.rotation_deg.items():
        words = ", ".join(f"{dimension} {value:g}" for dimension, value in errors.items())
        telling = f"{check.telling_deg[name]:g}, nearer on {check.nearer[name]}" if check.telling else "none"
        print(f"{name}: mean rotation error, degrees: {words}; on the {check.telling} rows that tell: {telling}")
    print(f"released answers agree with: {check.verdict or 'undecided'} ({check.reason})")


if __name__ == "__main__":
    run_command(app)
