"""The configuration as a page: every key with its default and what it means, from the schema itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from hatch_ray.config import config_class, make_config

INTRODUCTION = """\
# Configuration

A run is one YAML file (`configs/`) and any number of `key=value` changes on the command line:

    hatch train configs/tiny.yaml grpo.beta=0.02 run_dir=runs/mine
    hatch train configs/tiny.yaml --dry-run

A key that does not exist is refused with the nearest one that does. The resolved config is saved in the run folder;
a run folder is resumed only with the config that it was made with (resources, `stages`, `eval` and `serve` may differ).

Every key, as `hatch config` prints it:
"""


def fields(section: type[BaseModel] | None = None, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted key, default, description) of every key of HATCH's config."""
    for name, field in (section or config_class("hatch")).model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            default = make_config({})
            for part in f"{prefix}{name}".split("."):
                default = getattr(default, part)
            yield prefix + name, default, " ".join((field.description or "").split())


def reference() -> str:
    """The page in Markdown."""
    lines = [INTRODUCTION, "| key | default | meaning |", "|---|---|---|"]
    for key, default, meaning in fields():
        shown = "[" + ", ".join(default) + "]" if isinstance(default, list) else str(default)
        lines.append(f"| `{key}` | `{shown or '(empty)'}` | {meaning} |")
    return "\n".join(lines) + "\n"
