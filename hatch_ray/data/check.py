"""`hatch data check`: what a folder of data is, and whether its files mean what they are read as."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hatch_ray.data.geometry_check import StoredScene, check_geometry, refuse_misread
from hatch_ray.data.rgbd import find_recordings, stored_scenes
from hatch_ray.data.spar.layout import SOURCES, spar_folder
from hatch_ray.data.spar.views import spar_scenes
from hatch_ray.data.store import is_dataset, read_dataset
from hatch_ray.geometry.convention import Convention


def check_root(root: Path, convention: str, say: Callable[[str], None]) -> None:
    """Say what was found, a line a scene. Raises ValueError when a build would refuse it, naming what would fit."""
    if is_dataset(root):
        splits = [root] if (root / "index.jsonl").is_file() else [root / "train", root / "heldout"]
        for split in splits:
            say(f"{split}: {len(read_dataset(split))} samples, all well-formed")
        return
    read_as = Convention.parse(convention)
    verdicts = check_geometry(_scenes(root, read_as), read_as, thorough=True)
    if not verdicts:
        say(f"{root}: no poses, nothing to compare")
        return
    for verdict in verdicts:
        say(verdict.words())
    refuse_misread(verdicts, root)


def _scenes(root: Path, read_as: Convention) -> list[StoredScene]:
    """The scenes of a SPAR tree, or else of posed RGB-D folders."""
    if any((place / source / "qa_jsonl").is_dir() for place in (root, root / "spar") for source in SOURCES):
        return spar_scenes(spar_folder(root), SOURCES)
    return stored_scenes(find_recordings(root, read_as))
