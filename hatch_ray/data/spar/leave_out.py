"""Scenes that must not be trained on: ScanNet's validation rooms, SPAR's own validation rows, lists that are given."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

from hatch_ray.data.spar.layout import space_of

VAL_ROOMS = Path(__file__).parent / "scannet_val.txt"
"""The numbers of ScanNet's validation rooms, as `layout.space_of` names them after "scene"."""
SUFFIXES = (".txt", ".json", ".jsonl", ".parquet")


class LeftOut:
    """Which scenes may not be used: `scene in LeftOut(paths)`.

    A path is a .txt file (a scene or a row's id on each line, # begins a comment), .json or .jsonl (such names, or
    records with `id`), .parquet (a column `id`), or a folder: every such file in it, as SPAR-Bench is published. A
    row's id begins with its scene ("scene0261_00_16"). All scans of a room that is named are left out.
    Raises ValueError when a path is missing, names nothing, or holds an id that can name no scene.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._names = {f"scene{number}" for line in _lines(VAL_ROOMS) for number in line.split()}
        for path in paths:
            names = list(_names(path))
            if not names:
                raise ValueError(
                    f"data.spar.leave_out: {path} names no scene; expected {', '.join(SUFFIXES)} with names"
                )
            if number := next((name for name in names if name.isdigit()), None):
                raise ValueError(
                    f"data.spar.leave_out: id {number} of {path} names no scene; give a .txt file with one scene a line"
                )
            self._names.update(beginning for name in names for beginning in accumulate(name.split("_"), "{}_{}".format))

    def __contains__(self, scene: str) -> bool:
        return scene in self._names or space_of(scene) in self._names


def _names(path: Path) -> Iterator[str]:
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file()):
            yield from _names(file)
        return
    if not path.is_file():
        raise ValueError(f"data.spar.leave_out: {path} does not exist")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet as pq

        try:
            yield from map(str, pq.read_table(path, columns=["id"])["id"].to_pylist())
        except (OSError, pyarrow.ArrowException, KeyError) as error:
            raise ValueError(f"data.spar.leave_out: {path} has no readable column id ({error})") from None
        return
    try:
        if path.suffix == ".json":
            entries = json.loads(path.read_text(encoding="utf-8"))
            yield from (_name(entry, path) for entry in (entries if isinstance(entries, list) else [entries]))
        elif path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            yield from (_name(json.loads(line), path) for line in lines if line.strip())
        else:
            yield from _lines(path)
    except ValueError as error:
        raise ValueError(f"data.spar.leave_out: {path} cannot be read: {error}") from None


def _lines(path: Path) -> Iterator[str]:
    """Those of a text file that say something; # begins a comment."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return filter(None, lines)


def _name(entry: object, path: Path) -> str:
    name = entry.get("id") if isinstance(entry, dict) else entry
    if not isinstance(name, str) or not name:
        raise ValueError(f"an entry of {path.name} has no id: {entry!r}"[:160])
    return name
