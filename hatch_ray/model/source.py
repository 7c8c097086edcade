"""Where a model lies, before anything is loaded: a folder, a Hugging Face name or "hatch-tiny". Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

TINY = "hatch-tiny"


def tiny_model_path() -> Path:
    """The shipped hatch-tiny folder. Raises ValueError when the weights are not in the installation."""
    path = Path(__file__).parent / "weights" / "hatch-tiny"
    if not (path / "model.safetensors").is_file():
        raise ValueError(f"no hatch-tiny weights at {path}: reinstall hatch-ray")
    return path


def model_source(base: str | Path) -> str:
    """The absolute folder or the name to load: "hatch-tiny" becomes the packaged folder.

    Raises ValueError for something that looks like a path and is not a model folder.
    """
    if str(base) == TINY:
        return str(tiny_model_path())
    path = Path(base).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} is not a Hugging Face model folder: it has no config.json")
        return str(path.resolve())
    if isinstance(base, Path) or path.is_absolute() or str(base).startswith((".", "~")):
        raise ValueError(f"model folder {base} does not exist")
    return str(base)


def folder_kind(folder: Path) -> str | None:
    """The `model_type` of a model folder. Raises ValueError when its config.json is not JSON."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'} is not a model's config: {error}") from None
