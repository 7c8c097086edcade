"""What the columns of the paper's tables are means of."""

from __future__ import annotations

from dataclasses import dataclass

from hatch_ray.benchmarks.spar_scorers import KINDS


@dataclass(frozen=True)
class Column:
    """A mean over the rows of some groups.

    shares     None: every row counts alike. Else each group's mean with this weight (they sum to 1).
    needs_all  whether the mean exists only when every group has rows; otherwise the weights of those that have are
               brought to a sum of 1.
    """

    name: str
    groups: tuple[str, ...]
    shares: tuple[float, ...] | None = None
    needs_all: bool = False


@dataclass(frozen=True)
class Part:
    """One benchmark's block in a table. `name` is also the key of the published rows."""

    name: str
    title: str
    table: int
    columns: tuple[Column, ...]
    beside: tuple[str, ...] = ()
    """Groups that are reported by task and are part of no column."""
    official: tuple[Column, ...] | None = None
    """Columns under the scorer `official`, where they differ."""

    @property
    def groups(self) -> tuple[str, ...]:
        """All groups of the block."""
        return tuple(dict.fromkeys(group for column in self.columns for group in column.groups)) + self.beside

    def under(self, scorer: str) -> tuple[Column, ...]:
        """The columns as this scorer's authors make them."""
        return self.official if scorer == "official" and self.official is not None else self.columns


def _level(task: str) -> str:
    if KINDS[task] == "number":
        return "Low"
    return "Mid" if task in ("view_change_infer", "position_matching", "camera_motion_infer") else "High"


def _is_single(task: str) -> bool:
    return _level(task) != "Mid" and not task.endswith("_mv")


def _equal(name: str, groups: tuple[str, ...]) -> Column:
    return Column(name, groups, (1 / len(groups),) * len(groups))


def _spar_part(name: str, title: str, table: int, single: bool) -> Part:
    """Low, Middle and High of 2.4's aggregation: every row counts alike, view_change_infer is in Middle.

    The official code takes means of task means, and a slip in its key handling leaves view_change_infer out of Middle
    (it stays in the average).
    """
    tasks = [task for task in KINDS if _is_single(task) == single]
    levels = {level: tuple(task for task in tasks if _level(task) == level) for level in ("Low", "Mid", "High")}
    levels = {level: members for level, members in levels.items() if members} | {"Avg": tuple(tasks)}
    slipped = {
        level: tuple(task for task in members if level != "Mid" or task != "view_change_infer")
        for level, members in levels.items()
    }
    return Part(
        name, title, table,
        tuple(Column(level, members) for level, members in levels.items()),
        official=tuple(_equal(level, members) for level, members in slipped.items()),
    )  # fmt: skip


SPAR_MV = _spar_part("spar_mv", "SPAR-Bench-MV", 1, single=False)
SPAR_SI = _spar_part("spar_si", "SPAR-Bench-SI", 4, single=True)
MINDCUBE = Part("mindcube_tiny", "MindCube-Tiny", 1, (
    Column("Aro", ("around",)), Column("Rot", ("rotation",)), Column("Amo", ("among",)),
    Column("Avg", ("around", "rotation", "among")),
), beside=("translation",))  # fmt: skip
MMSI = Part("mmsi", "MMSI-Bench", 1, (
    *(Column(group, (group,)) for group in ("Pos", "Att", "Mot", "MSR")), Column("Avg", ("Pos", "Att", "Mot", "MSR")),
))  # fmt: skip
CVBENCH = Part("cvbench", "CV-Bench", 4, (
    Column("2D", ("ADE20K", "COCO"), (0.5, 0.5), needs_all=True),
    Column("3D", ("Omni3D",)),
    Column("Avg", ("ADE20K", "COCO", "Omni3D"), (0.25, 0.25, 0.5), needs_all=True),
))  # fmt: skip
"""The benchmark's own formula: 2D is the mean of two sources' accuracies, the average the mean of 2D and 3D."""

PARTS = {part.name: part for part in (SPAR_MV, MINDCUBE, MMSI, SPAR_SI, CVBENCH)}
