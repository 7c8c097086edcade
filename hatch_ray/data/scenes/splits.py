"""Scenes of a folder as training data: which are held out, and the parts of one that stands alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hatch_ray.config_sections import DataConfig
from hatch_ray.data.rgbd import time_split
from hatch_ray.data.scenes.forms import find_scenes, forms_of, read_scene
from hatch_ray.data.scenes.posed import PosedScene
from hatch_ray.data.store import Split
from hatch_ray.data.unique import UniqueNames
from hatch_ray.geometry.convention import Convention

MANY_FORMS = ("transforms", "colmap")
"""Of a folder in several forms the first of these is read: it has the other's landmarks too."""


def split_scenes(data: DataConfig, seed: int, split: Split) -> tuple[list[Callable[[], PosedScene]], dict[str, Any]]:
    """What reads each scene of a split, at or below data.root, and what the source says of itself.

    Of several scenes `data.heldout_fraction` is held out, drawn by the seed; one alone gives its last frames, a gap
    before them. Raises ValueError when there is no scene; so does reading one that cannot be used.
    """
    if data.root is None or not data.root.is_dir():
        raise ValueError(f"data.root {data.root} is not a folder")
    folders = list(find_scenes(data.root))
    if not folders:
        raise ValueError(f"{data.root} holds no scene in a form that is read; docs/scenes.md has them")
    read_as = Convention.parse(data.convention)
    if replace(read_as, translation=1.0) != Convention():
        raise ValueError(f"data.convention={data.convention}: of kind scenes translation*FACTOR alone is read")
    names = UniqueNames()
    named = [(names.of(folder, "-".join(folder.relative_to(data.root).parts)), folder) for folder in folders]
    if len(folders) > 1:
        held = max(1, round(data.heldout_fraction * len(folders)))
        order = np.random.default_rng([seed, len(folders)]).permutation(len(folders))
        chosen = sorted(order[:held] if split == "heldout" else order[held:])
        named = [named[place] for place in chosen]
    alone = split if len(folders) == 1 else None
    return [partial(_read, name, folder, data, alone) for name, folder in named], {"source": {"scenes": len(named)}}


def _read(name: str, folder: Path, data: DataConfig, alone: Split | None) -> PosedScene:
    forms = forms_of(folder)
    scene = read_scene(folder, next((form for form in MANY_FORMS if form in forms), "") if len(forms) > 1 else "")
    keep = np.arange(0, len(scene), data.frame_step)
    if alone is not None:
        keep = np.array(time_split(range(len(scene)), alone, data), dtype=int)
        name = f"{name or scene.id}-{alone}"
    factor = Convention.parse(data.convention).translation
    return replace((scene if factor == 1 else scene.scaled(factor)).part(keep), id=name or scene.id)
