"""The question types: their words, and what is right by the geometry of a pair of photos."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hatch_ray.data.questions.choices import listed
from hatch_ray.systems.viewpoint.motion import Mode, Motion

STILL = "The object did not move between these two photos."
STILL_PLACE = "Nothing moved between these two photos but the camera."
LETTERS = "ABC"
SIDES = ("left", "right")
OPPOSITE = dict(zip(SIDES, reversed(SIDES), strict=True))


@dataclass(frozen=True)
class QuestionType:
    """One type. words: the question. options: left, right and the one that is never right; empty: degrees are asked.

    signed: the number whose sign is the answer, right plus.
    """

    words: str
    options: tuple[str, ...]
    signed: Callable[[Motion], float]
    orbit_only: bool = False

    @property
    def form(self) -> str:
        return "letter" if self.options else "number"


MOVED = ("to the left", "to the right", "it did not move")
TURNED = ("to the left", "to the right", "it did not turn")
TYPES = {
    "ego_translation": QuestionType(
        "Seen from the camera, which way did the camera's position move from the first photo to the second?",
        MOVED, lambda motion: motion.lateral,
    ),
    "object_translation": QuestionType(
        "Seen from the object, which faces the first camera, which way did the camera's position move from the first "
        "photo to the second?",
        MOVED, lambda motion: -motion.lateral, orbit_only=True,
    ),
    "ego_rotation": QuestionType(
        "Seen from the camera, which way did the camera turn from the first photo to the second?",
        TURNED, lambda motion: motion.yaw_deg,
    ),
    "rotation_degrees": QuestionType(
        "Seen from the camera, by how many degrees did the camera turn from the first photo to the second? To the "
        "right is plus, to the left is minus.",
        (), lambda motion: motion.yaw_deg,
    ),
}  # fmt: skip
TURNS = ("ego_rotation", "rotation_degrees")
"""The types that ask how the camera turned; the others ask how it moved."""
LETTERED = tuple(name for name, kind in TYPES.items() if kind.options)


def known_types(names: list[str], mode: Mode) -> list[str]:
    """The types that are asked; where none is named, the lettered ones that the mode has. Raises ValueError."""
    if unknown := [name for name in names if name not in TYPES]:
        raise ValueError(f"{unknown[0]!r} is no question type of viewpoint; known are {', '.join(TYPES)}")
    if mode == "free" and (lost := [name for name in names if TYPES[name].orbit_only]):
        raise ValueError(f"{lost[0]} needs an object that the camera goes around; take it out, or set mode: orbit")
    return names or [name for name in LETTERED if mode == "orbit" or not TYPES[name].orbit_only]


def side(name: str, motion: Motion) -> str:
    """ "left" or "right": the right answer of a type."""
    return SIDES[TYPES[name].signed(motion) > 0]


@dataclass(frozen=True)
class Asked:
    """A question as a sample has it. options: as they stand under their letters; empty where degrees are asked."""

    text: str
    answer: str
    options: tuple[str, ...]


def ask(name: str, motion: Motion, mode: Mode, letter: str, rng: np.random.Generator) -> Asked:
    """The question about a motion, its right option under `letter`."""
    kind = TYPES[name]
    text = f"{STILL if mode == 'orbit' else STILL_PLACE} {kind.words}"
    if not kind.options:
        return Asked(text, f"{kind.signed(motion):+.0f}", ())
    right = kind.options[SIDES.index(side(name, motion))]
    others = [option for option in kind.options if option != right]
    options = [others[index] for index in rng.permutation(len(others))]
    options.insert(LETTERS.index(letter), right)
    return Asked(f"{text} {listed(options)}", letter, tuple(options))


class Balance:
    """Which side and which letter come next: of every two of a key one is left, of every six each letter stands once
    with each side.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._due: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def next(self, key: str) -> tuple[str, str]:
        """(side, letter)."""
        if not self._due[key]:
            letters = {side: self._rng.permutation(list(LETTERS)) for side in SIDES}
            for turn in range(len(LETTERS)):
                self._due[key] += [(side, str(letters[side][turn])) for side in self._rng.permutation(SIDES).tolist()]
        return self._due[key].pop()
