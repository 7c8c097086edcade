"""An index of every row of a SPAR tree: where it stands and what it is. Seven million rows are read once, never held.

FOLDER/rows.bin      one fixed-size entry (`ROW`) a row, read through a memory map
FOLDER/tables.json   names behind the entries' numbers, files with size and time, refused lines by reason

A tree whose files changed is indexed again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from hatch_ray.data.spar.bad_rows import BadRows, RowRefused
from hatch_ray.data.spar.layout import FORMATS, SOURCES, SPLITS, scene_of

VERSION = 1
CONTENT = {"rows.bin", "tables.json"}
ROW = np.dtype(
    [
        ("file", "<u4"),
        ("offset", "<u8"),
        ("scene", "<u4"),
        ("task", "<u2"),
        ("source", "u1"),
        ("format", "u1"),
        ("split", "u1"),
        ("views", "u1"),
        ("digest", "<u8"),
    ]
)
"""An entry: 30 bytes. `digest` is of the line's bytes, so that copied rows can be told."""
BUFFER_ROWS = 1 << 16
MOST_VIEWS = 255

Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes in all)."""


@dataclass(frozen=True)
class QaFile:
    """A JSONL file of one source, split and format; its rows' tasks are in the rows."""

    path: Path
    source: str
    split: str
    format: str


def qa_files(root: Path) -> list[QaFile]:
    """The JSONL files below a folder of sources, in order of their names.

    Raises ValueError when there are none.
    """
    files = [
        QaFile(path, source, split, form)
        for source in SOURCES
        for split in SPLITS
        for form in FORMATS
        for path in (root / source / "qa_jsonl" / split).glob(f"*/{form}/*.jsonl")
    ]
    if not files:
        raise ValueError(f"{root} has no SOURCE/qa_jsonl/{{train,val}}/TASK/{{{','.join(FORMATS)}}}/*.jsonl")
    return sorted(files, key=lambda file: file.path.as_posix())


class SparIndex:
    """The rows of a tree by number. `rows` is a memory map of `ROW` entries; nothing else grows with the tree."""

    def __init__(self, folder: Path, root: Path) -> None:
        tables = json.loads((folder / "tables.json").read_text(encoding="utf-8"))
        self.root = root
        self.files: list[str] = [name for name, _, _ in tables["files"]]
        self.tasks: list[str] = tables["tasks"]
        self.scenes: list[str] = tables["scenes"]
        self.refused: dict[str, Any] = tables["refused"]
        self.rows = (
            np.memmap(folder / "rows.bin", dtype=ROW, mode="r")
            if (folder / "rows.bin").stat().st_size
            else np.zeros(0, ROW)
        )

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


def open_index(root: Path, folder: Path, progress: Progress | None = None) -> SparIndex:
    """The index of the sources below `root`, kept in `folder`; made when it is absent or the tree's files changed.

    Raises ValueError when more than 5 % of the lines cannot be used, when the folder cannot be written, or when it
    holds something else.
    """
    files = qa_files(root)
    listed = [[str(file.path.relative_to(root)), *_stamp(file.path)] for file in files]
    if _listed(folder) != listed:
        if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= CONTENT):
            raise ValueError(f"{folder} holds something else than an index; name another folder with data.spar.index")
        try:
            _write(files, listed, root, folder, progress)
        except OSError as error:
            raise ValueError(
                f"cannot write the index {folder} ({error.strerror}); name another folder with data.spar.index"
            ) from None
    return SparIndex(folder, root)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _listed(folder: Path) -> list[Any] | None:
    """The files that an existing index was made from; None when there is no index of this version."""
    path = folder / "tables.json"
    if not path.is_file():
        return None
    tables = json.loads(path.read_text(encoding="utf-8"))
    return tables["files"] if tables.get("version") == VERSION else None


def _write(files: list[QaFile], listed: list[Any], root: Path, folder: Path, progress: Progress | None) -> None:
    building = folder.with_name(f".{folder.name}.building-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        tables = _Tables(str(root))
        total, done = sum(size for _, size, _ in listed), 0
        with (building / "rows.bin").open("wb") as out:
            for number, file in enumerate(files):
                for block in tables.blocks(number, file):
                    block.tofile(out)
                done += listed[number][1]
                if progress:
                    progress(done, total)
        tables.bad.check()
        content = {
            "version": VERSION,
            "files": listed,
            "tasks": list(tables.tasks),
            "scenes": list(tables.scenes),
            "refused": tables.bad.summary(),
        }
        (building / "tables.json").write_text(json.dumps(content), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


class _Tables:
    """Numbers for names, given in the order of meeting them."""

    def __init__(self, place: str) -> None:
        self.tasks: dict[str, int] = {}
        self.scenes: dict[str, int] = {}
        self.bad = BadRows(place)

    def blocks(self, number: int, file: QaFile) -> Iterator[np.ndarray]:
        """The file's entries, a buffer at a time."""
        source, split, form = SOURCES.index(file.source), SPLITS.index(file.split), FORMATS.index(file.format)
        buffer: list[tuple[Any, ...]] = []
        offset = 0
        with file.path.open("rb") as lines:
            for line in lines:
                start, offset = offset, offset + len(line)
                line = line.strip()
                if not line:
                    continue
                self.bad.read += 1
                try:
                    task, scene, views = self._row(line)
                except RowRefused as refusal:
                    self.bad.add(refusal, f"{file.path} at byte {start}")
                    continue
                digest = int.from_bytes(blake2b(line, digest_size=8).digest(), "little")
                buffer.append((number, start, scene, task, source, form, split, views, digest))
                if len(buffer) == BUFFER_ROWS:
                    yield np.array(buffer, ROW)
                    buffer.clear()
        yield np.array(buffer, ROW)

    def _row(self, line: bytes) -> tuple[int, int, int]:
        """(task, scene, views) of a line. Raises RowRefused."""
        try:
            record = json.loads(line)
        except ValueError as error:
            raise RowRefused("line_is_not_json", str(error)) from None
        if not isinstance(record, dict):
            raise RowRefused("line_is_not_an_object", f"it is {type(record).__name__}")
        task, images = record.get("type"), record.get("image")
        if not isinstance(task, str) or not task:
            raise RowRefused("no_type", f"type is {task!r}")
        if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
            raise RowRefused("no_image_list", f"image is {images!r}"[:120])
        try:
            scene = scene_of(images[0])
        except ValueError as error:
            raise RowRefused("bad_image_path", str(error)) from None
        return (
            self.tasks.setdefault(task, len(self.tasks)),
            self.scenes.setdefault(scene, len(self.scenes)),
            min(len(images), MOST_VIEWS),
        )
