"""Questions that hatch-tiny can answer, on rooms that it never saw: what PaStA's gauge asks it (`learning/skills.py`).

    python -m tools.tiny_skills --out hatch_ray/model/weights/hatch-tiny

The file lies beside the weights, because it says what these weights can do. Write it again when they or the rooms
change (a test compares).
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Annotated, Any

import typer

from hatch_ray.data.rooms import PRETRAIN_SEEDS, RoomOptions
from hatch_ray.learning.skills import FILE
from hatch_ray.run_folder import write_atomic
from tools.pretrain_data import HELDOUT_OFFSET, ask, render_views
from tools.pretrain_packing import draw_views

SKILLS = {
    "heading": ("heading", "deg"),
    "direction": ("direction between views", "deg"),
    "camera": ("bearing of the other camera", "deg"),
    "match": ("match", "right"),
}
"""Kind of question -> the skill's name, and the unit of its error, or "right": the share of exact answers."""
ROOMS = 16
EACH = 64
"""Questions of each skill: as many of every room."""
OPTIONS: dict[str, Any] = {"n_views": 10, "walk": False, "min_ahead": 2.2}
"""The cameras of the pretraining (`tools/pretrain_tiny.py`)."""


def main(out: Annotated[Path, typer.Option(help="the folder of the weights")]) -> None:
    """Write OUT/skills.json."""
    write_atomic(out / FILE, json.dumps(skills(), indent=None, separators=(",", ":")).replace('{"skill"', '\n{"skill"'))


def skills(rooms: int = ROOMS) -> dict[str, Any]:
    """What the file holds; with fewer rooms the questions of the first ones."""
    views = render_views(rooms, RoomOptions(**OPTIONS), HELDOUT_OFFSET)
    questions = []
    for room in range(rooms):
        rng = random.Random(f"skills {room}")
        for kind, (name, _) in SKILLS.items():
            asked = 0
            while asked < EACH // ROOMS:
                shown = draw_views(views, 2, rng)[1]
                pair = ask(kind, views, room, shown, rng)
                if pair is None:
                    continue
                asked += 1
                place = {"skill": name, "room": PRETRAIN_SEEDS + HELDOUT_OFFSET + room, "views": list(shown)}
                questions.append(place | {"question": pair[0], "answer": pair[1]})
    return {"rooms": OPTIONS, "units": dict(SKILLS.values()), "questions": questions}


if __name__ == "__main__":
    typer.run(main)
