"""The list of what lies in a folder, by which a reader tells a whole one from one that is half-written or damaged.

FOLDER/manifest.json   "files": every other file with its bytes and XXH3
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import xxhash

MANIFEST = "manifest.json"
BLOCK = 8 * 2**20
"""Bytes hashed at a time."""

_good: set[tuple[Path, int, int]] = set()
"""Folders that this process has verified or written: path, and inode and time of the manifest."""


def problem(path: Path) -> str | None:
    """What is wrong with which file of a state, in one clause; None for a good one."""
    if not (path / MANIFEST).is_file():
        return f"it has no {MANIFEST}, so it is half-written, or was made by a hatch-ray older than its manifests"
    identity = _identity(path)
    if identity in _good:
        return None
    try:
        files = read_manifest(path)["files"]
        expected = {name: (int(entry["bytes"]), str(entry["xxh3"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is damaged"
    sizes = {name: (path / name).stat().st_size for name in _names(path)}
    for name, (size, _) in expected.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != size:
            return f"{name} has {sizes[name]} bytes where {size} were written"
    for name in sizes:
        if name not in expected:
            return f"{name} is not in its {MANIFEST}"
        if _hash(path / name) != expected[name][1]:
            return f"{name} does not hold what was written (its checksum differs)"
    _good.add(identity)
    return None


def remember(path: Path) -> None:
    """Take a folder that this process has just written for good: its files are not read again."""
    _good.add(_identity(path))


def _identity(path: Path) -> tuple[Path, int, int]:
    stat = (path / MANIFEST).stat()
    return path.resolve(), stat.st_ino, stat.st_mtime_ns


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest as it was written. Raises OSError or ValueError when it cannot be read."""
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(name for file in files if (name := file.relative_to(folder).as_posix()) != MANIFEST)


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Bytes and hash of every file, which is on the disk when this returns."""
    found = {}
    for name in _names(folder):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        found[name] = ((folder / name).stat().st_size, _hash(folder / name))
    return found


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
