"""Finding and opening a benchmark's published files: a local folder or zip, or a dataset of the Hugging Face hub."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
from PIL import Image

from hatch_ray.benchmarks.item import BadRowError
from hatch_ray.data.images import ImageRefused, check_header, load_upright, shrink
from hatch_ray.data.parquet import Row

MOST_NAMED = 8


def choose_root(name: str, roots: Sequence[str], hub: str = "") -> str:
    """The root for one benchmark: NAME=ROOT, else the common one (its subfolder named as on the hub), else the hub."""
    common = hub
    for root in roots:
        named, equals, value = root.partition("=")
        if equals and named == name:
            return value
        if not equals:
            below = Path(root).expanduser() / hub.rpartition("/")[2]
            common = str(below) if hub and below.is_dir() else root
    return common


def local_root(root: str, patterns: Sequence[str]) -> Path:
    """A folder or zip of this machine as it is; the name of a hub dataset is fetched (only what the patterns name).

    Raises ValueError when it is neither.
    """
    path = Path(root).expanduser()
    if path.exists():
        return path
    if root.count("/") != 1 or root.startswith((".", "~", "/")) or root.endswith("/"):
        raise ValueError(f"{root} does not exist; give --root a folder of the benchmark, or a hub name OWNER/NAME")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(root, repo_type="dataset", allow_patterns=list(patterns)))
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{root} is no folder here, and it could not be fetched as a dataset of the Hugging Face hub ({reason}); "
            "download it where there is network and give its folder with --root"
        ) from None


def find_files(root: Path, patterns: Sequence[str], benchmark: str) -> tuple[Path, ...]:
    """The files of the first pattern that matches any, sorted. Raises ValueError: expected, found."""
    for pattern in patterns:
        found = sorted(root.glob(pattern)) if root.is_dir() else [root] if root.match(pattern) else []
        if found:
            return tuple(found)
    raise ValueError(f"{root} is not {benchmark}: expected {' or '.join(patterns)}, found {_found(root)}")


def _found(root: Path) -> str:
    if not root.is_dir():
        return f"the file {root.name}"
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return (", ".join(names[:MOST_NAMED]) + more) or "an empty folder"


def read_member(file: Path | zipfile.Path, name: str) -> bytes:
    """A file's bytes, of a folder or inside a zip. Raises ValueError, one line, when they are damaged."""
    try:
        return file.read_bytes()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{name} cannot be read ({error}); download it again") from None


def zip_folder(path: Path, folder: str) -> zipfile.Path:
    """A folder inside a zip. Raises ValueError when it is no zip."""
    try:
        return zipfile.Path(path, f"{folder}/")
    except zipfile.BadZipFile:
        raise ValueError(f"{path} is no readable zip; download it again") from None


def json_lines(data: bytes) -> Iterator[Row | None]:
    """One object a line; None for a line that is no JSON object. Empty lines are passed over."""
    for line in data.splitlines():
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            yield row if isinstance(row, dict) else None


def check_image(data: object) -> bytes:
    """The bytes of an image whose header is that of a photo. Raises BadRowError."""
    if isinstance(data, dict):
        data = data.get("bytes")
    if not isinstance(data, bytes) or not data:
        raise BadRowError("image_without_bytes")
    try:
        check_header(data, "")
    except ImageRefused as refusal:
        raise BadRowError(refusal.fault) from None
    return data


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """RGB as the photo is to be seen (EXIF), scaled down to `max_pixels`. Raises BadRowError."""
    try:
        return shrink(load_upright(data, ""), max_pixels)
    except ImageRefused as refusal:
        raise BadRowError(refusal.fault) from None
