"""What a line of a dataset's index must be: checked whole when it is opened, so that hand-made rows fail then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from hatch_ray.geometry.actions import check_atoms
from hatch_ray.geometry.se3 import as_transform
from hatch_ray.protocol.prompt import check_text
from hatch_ray.protocol.values import gold_fault
from hatch_ray.sample import ANSWER_FORMS, MarkColor

FAULTS_NAMED = 10
SHOWN = 60
"""Characters of a value in a message."""


Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


def _intrinsics(value: list[list[float]]) -> list[list[float]]:
    k = _square(value, 3)
    if k[0, 0] <= 0 or k[1, 1] <= 0:
        raise ValueError("is no pinhole matrix with positive focal lengths")
    return value


def _pose(value: list[list[float]]) -> list[list[float]]:
    as_transform(_square(value, 4))
    return value


def _square(value: list[list[float]], side: int) -> np.ndarray:
    if [len(row) for row in value] != [side] * side:
        shape = f"({len(value)}, {len(value[0])})" if value else "(0,)"
        raise ValueError(f"a matrix has shape {shape}, expected ({side}, {side})")
    return np.array(value, dtype=float)


Intrinsics = Annotated[list[list[Number]], AfterValidator(_intrinsics)]
Pose = Annotated[list[list[Number]], AfterValidator(_pose)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=True)


class ViewRow(_Part):
    image: Text
    depth: Text | None
    intrinsics: Intrinsics | None
    depth_intrinsics: Intrinsics | None
    pose: Pose | None


class MarkRow(_Part):
    view: Annotated[int, Field(ge=0)]
    color: MarkColor
    xy: list[Number]
    label: str = ""

    @model_validator(mode="after")
    def _check(self) -> MarkRow:
        if len(self.xy) not in (2, 4):
            raise ValueError(f"a mark has 2 coordinates (point) or 4 (box), got {len(self.xy)}")
        return self


class FrameRow(_Part):
    pitch_deg: Number
    roll_deg: Number


def _atoms(value: list[tuple[str, float]]) -> list[tuple[str, float]]:
    check_atoms(value)
    return value


class PlanRow(_Part):
    source: int
    target: int
    atoms: Annotated[list[Annotated[tuple[str, Number], Field(strict=False)]], AfterValidator(_atoms)]
    frame: FrameRow | None
    residual_deg: Number = 0.0


class SampleRow(_Part):
    """One line. Raises ValidationError; what hangs together is checked last."""

    id: Text
    scene: Text
    task: Text
    answer_form: Text
    question: Text
    answer: str
    views: Annotated[list[ViewRow], Field(min_length=1)]
    marks: list[MarkRow]
    plans: list[PlanRow]
    meta: dict[str, Any]

    @model_validator(mode="after")
    def _check(self) -> SampleRow:
        check_text(self.question)
        fault = gold_fault(self.answer, self.answer_form) if self.answer_form in ANSWER_FORMS else None
        if fault is not None:
            said = fault.replace("_", " ")
            raise ValueError(f"answer {self.answer[:SHOWN]!r} {said} (answer_form {self.answer_form})")
        for mark in self.marks:
            if mark.view >= len(self.views):
                raise ValueError(f"marks name view {mark.view} of {len(self.views)} views")
        pairs = list(combinations(range(len(self.views)), 2))
        planned = [(plan.source, plan.target) for plan in self.plans]
        posed = all(view.pose is not None for view in self.views)
        if (planned or posed) and sorted(planned) != pairs:
            raise ValueError(f"plans are for the pairs {planned}, the views need {pairs}")
        up = self.meta.get("up")
        if up is not None and (not isinstance(up, list) or len(up) != 3):
            raise ValueError(f"meta.up is {up!r}, not three numbers or null"[: 2 * SHOWN])
        return self


def checked_rows(index: Path) -> list[dict[str, Any]]:
    """Every row of an index as plain values.

    Raises ValueError, one line: the first ten faults with line, field and value, and how many more there are.
    """
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    try:
        lines = index.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{index} is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8, or build the dataset again"
        ) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            SampleRow.model_validate(row)
            faults += [f"line {number}: {fault}" for fault in _absent(row, index.parent)]
        except ValidationError as error:
            faults += [f"line {number}: {_words(fault)}" for fault in error.errors(include_url=False)]
            continue
        except ValueError as error:
            faults.append(f"line {number} is no JSON ({error})")
            continue
        rows.append(row)
    if faults:
        more = f"; and {len(faults) - FAULTS_NAMED} more" if len(faults) > FAULTS_NAMED else ""
        raise ValueError(
            f"{index} has rows that are not samples: {'; '.join(faults[:FAULTS_NAMED])}{more}; fix them, or build the "
            "dataset again"
        )
    return rows


def _words(fault: Any) -> str:
    """ "views.0.pose: the pose holds NaN, got [[..."."""
    place = ".".join(str(part) for part in fault["loc"])
    message = str(fault["msg"]).removeprefix("Value error, ")
    value = repr(fault["input"])
    got = f", got {value[:SHOWN]}{'..' * (len(value) > SHOWN)}" if place and fault["type"] != "missing" else ""
    return f"{place}: {message}{got}" if place else message


def _absent(row: dict[str, Any], root: Path) -> Iterator[str]:
    for number, view in enumerate(row["views"]):
        for field in ("image", "depth"):
            if view[field] is not None and not (root / view[field]).is_file():
                yield f"views.{number}.{field}: {view[field]} does not exist"
