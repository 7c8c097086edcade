"""An index of every row of a SPAR tree: where it stands and what it is. Seven million rows are read once, never held.

FOLDER/rows.bin      one fixed-size entry (`ROW`) a row, read through a memory map
FOLDER/tables.json   names behind the entries' numbers, files with size and time, refused lines by reason

A tree whose files changed is indexed again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hatch_ray.data.refusals import BadRows, Refusal
from hatch_ray.data.spar.layout import FORMATS, SOURCES, SPLITS, scene_of

VERSION = 1
CONTENT = {"rows.bin", "tables.json"}
ROW = np.dtype([
    ("file", "<u4"), ("offset", "<u8"), ("scene", "<u4"), ("task", "<u2"), ("source", "u1"), ("format", "u1"),
    ("split", "u1"), ("views", "u1"), ("digest", "<u8"),
])  # fmt: skip
"""An entry: 30 bytes. `digest` is of the line's bytes, so that copied rows can be told."""
BUFFER_ROWS = 1 << 16
MOST_VIEWS = 255


def qa_files(root: Path) -> dict[str, tuple[int, int, int]]:
    """The JSONL files below a folder of sources, by name: the numbers of their source, split and format.

    Raises ValueError when there are none.
    """
    files = {
        path.relative_to(root).as_posix(): (source, split, form)
        for source, source_name in enumerate(SOURCES)
        for split, split_name in enumerate(SPLITS)
        for form, form_name in enumerate(FORMATS)
        for path in (root / source_name / "qa_jsonl" / split_name).glob(f"*/{form_name}/*.jsonl")
    }
    if not files:
        raise ValueError(f"{root} has no SOURCE/qa_jsonl/{{train,val}}/TASK/{{{','.join(FORMATS)}}}/*.jsonl")
    return dict(sorted(files.items()))


class SparIndex:
    """The rows of a tree by number. `rows` is a memory map of `ROW` entries; nothing else grows with the tree."""

    def __init__(self, folder: Path, root: Path) -> None:
        tables = json.loads((folder / "tables.json").read_text(encoding="utf-8"))
        self.root = root
        self.files: list[str] = [name for name, _, _ in tables["files"]]
        self.tasks: list[str] = tables["tasks"]
        self.scenes: list[str] = tables["scenes"]
        self.refused: dict[str, Any] = tables["refused"]
        rows = folder / "rows.bin"
        self.rows = np.memmap(rows, dtype=ROW, mode="r") if rows.stat().st_size else np.zeros(0, ROW)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        """File and offset of a row, for messages."""
        return f"{self.files[self.rows[row]['file']]} at byte {self.rows[row]['offset']}"

    def record(self, row: int) -> dict[str, Any]:
        """The row's JSON object, read from its file."""
        entry = self.rows[row]
        with (self.root / self.files[entry["file"]]).open("rb") as file:
            file.seek(int(entry["offset"]))
            record: dict[str, Any] = json.loads(file.readline())
        return record


def open_index(root: Path, folder: Path) -> SparIndex:
    """The index of the sources below `root`, kept in `folder`; made when it is absent or the tree's files changed.

    Raises ValueError when more than 5 % of the lines cannot be used, when the folder cannot be written, or when it
    holds something else.
    """
    files = qa_files(root)
    listed = [[name, status.st_size, status.st_mtime_ns] for name in files for status in ((root / name).stat(),)]
    tables = folder / "tables.json"
    known = json.loads(tables.read_text(encoding="utf-8")) if tables.is_file() else {}
    if known.get("version") != VERSION or known["files"] != listed:
        if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= CONTENT):
            raise ValueError(f"{folder} holds something else than an index; name another folder with data.spar.index")
        building = folder.with_name(f".{folder.name}.building-{os.getpid()}")
        try:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
            _Writer(root).write(files, listed, building)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(building, folder)
        except OSError as error:
            raise ValueError(
                f"cannot write the index {folder} ({error.strerror}); name another folder with data.spar.index"
            ) from None
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return SparIndex(folder, root)


class _Writer:
    """Makes an index. Tasks and scenes get their numbers in the order of meeting them."""

    def __init__(self, root: Path) -> None:
        self.root, self.bad = root, BadRows(str(root))
        self.tasks: dict[str, int] = {}
        self.scenes: dict[str, int] = {}

    def write(self, files: dict[str, tuple[int, int, int]], listed: list[list[Any]], folder: Path) -> None:
        """Both files of the index. Raises ValueError when too many lines cannot be used."""
        with (folder / "rows.bin").open("wb") as out:
            for number, (name, of) in enumerate(files.items()):
                rows = self._rows(number, name, of)
                while block := list(islice(rows, BUFFER_ROWS)):
                    np.array(block, ROW).tofile(out)
        self.bad.check()
        content = {
            "version": VERSION, "files": listed, "tasks": list(self.tasks), "scenes": list(self.scenes),
            "refused": self.bad.summary(),
        }  # fmt: skip
        (folder / "tables.json").write_text(json.dumps(content), encoding="utf-8")

    def _rows(self, number: int, name: str, of: tuple[int, int, int]) -> Iterator[tuple[int, ...]]:
        """The file's entries."""
        source, split, form = of
        offset = 0
        with (self.root / name).open("rb") as lines:
            for line in lines:
                start, offset = offset, offset + len(line)
                if not (line := line.strip()):
                    continue
                self.bad.read += 1
                try:
                    task, scene, views = self._row(line)
                except Refusal as refusal:
                    self.bad.add(refusal, f"{self.root / name} at byte {start}")
                    continue
                digest = int.from_bytes(blake2b(line, digest_size=8).digest(), "little")
                yield number, start, scene, task, source, form, split, views, digest

    def _row(self, line: bytes) -> tuple[int, int, int]:
        """(task, scene, views) of a line. Raises Refusal."""
        try:
            record = json.loads(line)
        except ValueError as error:
            raise Refusal("line_is_not_json", str(error)) from None
        if not isinstance(record, dict):
            raise Refusal("line_is_not_an_object", f"it is {type(record).__name__}")
        task, images = record.get("type"), record.get("image")
        if not isinstance(task, str) or not task:
            raise Refusal("no_type", f"type is {task!r}")
        if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
            raise Refusal("no_image_list", f"image is {images!r}"[:120])
        try:
            scene = scene_of(images[0])
        except ValueError as error:
            raise Refusal("bad_image_path", str(error)) from None
        return (
            self.tasks.setdefault(task, len(self.tasks)),
            self.scenes.setdefault(scene, len(self.scenes)),
            min(len(images), MOST_VIEWS),
        )
