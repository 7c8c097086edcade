"""The one record that every stage reads: views, question, gold answer, gold actions.

Nothing here touches pixels: a view names files, and `hatch_ray.data.images` loads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

AnswerForm = Literal["letter", "number", "box", "camera_motion", "view_change", "text"]
"""What HATCH's answers look like. SPAR's `select` rows are "letter"; its `fill` rows are one of the others, by task."""
ANSWER_FORMS: tuple[AnswerForm, ...] = get_args(AnswerForm)

MarkColor = Literal["red", "green", "blue", "yellow"]


@dataclass(frozen=True)
class View:
    """One photo. Depth, intrinsics and pose exist for training and scoring only; the model sees the image.

    image_path        RGB file.
    depth_path        uint16 PNG in millimetres (z-depth), 0 = no reading; None when there is no depth.
    intrinsics        (3, 3) pinhole matrix of the colour grid, pixels; None when unknown.
    depth_intrinsics  (3, 3) pinhole matrix of the depth grid, pixels; None when there is no depth.
    pose              (4, 4) camera-to-world, metres, OpenCV axes (x right, y down, z forward); None when unknown.
    """

    image_path: Path
    depth_path: Path | None = None
    intrinsics: np.ndarray | None = None
    depth_intrinsics: np.ndarray | None = None
    pose: np.ndarray | None = None


@dataclass(frozen=True)
class Mark:
    """A point or box drawn on the model's copy of one view, in SPAR's 0-1000 coordinates (x by width, y by height).

    `xy` has 2 numbers for a point, 4 for a box (x1, y1, x2, y2). `label` is written beside a box
    (spatial_imagination_map_mv's "object0"), and makes a point a numbered circle (`data.numbered`); empty: none.
    """

    view: int
    color: MarkColor
    xy: tuple[float, ...]
    label: str = ""

    def __post_init__(self) -> None:
        if len(self.xy) not in (2, 4):
            raise ValueError(f"a mark has 2 coordinates (point) or 4 (box), got {len(self.xy)}")

    def to_row(self) -> dict[str, Any]:
        """Plain JSON values; `from_row` takes them back."""
        row = {"view": self.view, "color": self.color, "xy": list(self.xy)}
        return row | {"label": self.label} if self.label else row

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Mark:
        """The inverse of `to_row`. Raises KeyError when a field is missing."""
        return cls(row["view"], row["color"], tuple(row["xy"]), row.get("label", ""))


@dataclass(frozen=True)
class ActionFrame:
    """Where camera i stands against gravity: the state in which an action list is composed (degrees).

    pitch is above the horizon, roll about the optical axis (right side down is positive). None for a whole
    plan means that up is unknown, and the list is composed in the camera's own frame.
    """

    pitch_deg: float
    roll_deg: float


Atom = tuple[str, float]
"""A camera operation: a key of `geometry.actions.ATOMS`, its non-negative magnitude; e.g. ("turn_right_deg", 30)."""


@dataclass(frozen=True)
class PairPlan:
    """The action list that takes the camera of view `source` to that of view `target` (0-based, source < target)."""

    source: int
    target: int
    atoms: tuple[Atom, ...]
    frame: ActionFrame | None = None
    residual_deg: float = 0.0
    """Angle between the list's end rotation and the true one: the roll difference that the vocabulary cannot say."""


@dataclass(frozen=True)
class Sample:
    """A question over several views of one place, with everything that a verifier needs to judge the reply.

    task         the kind of question; HATCH's are those of `hatch_ray.data.questions` (SPAR's task names).
    answer_form  what the reply's answer must look like, one of the system's `answer_forms`; HATCH's are `AnswerForm`.
    marks        drawn on the model's copy only; PaStA and depth use the unmarked image.
    plans        gold actions for every pair i < j; empty for a single view.
    """

    id: str
    scene: str
    task: str
    answer_form: str
    question: str
    answer: str
    views: tuple[View, ...]
    marks: tuple[Mark, ...] = ()
    plans: tuple[PairPlan, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def asked(cls, question: str, n_views: int, answer_form: str) -> Sample:
        """A question that somebody asks, as a system's prompt takes it: no gold answer, no files behind its views."""
        return cls("asked", "", "", answer_form, question, "", (View(Path()),) * n_views)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The view pairs (i, j), i < j, that a reply must cover (eq. 7)."""
        n = len(self.views)
        return [(i, j) for i in range(n) for j in range(i + 1, n)]
