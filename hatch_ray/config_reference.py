"""The configuration as a page: every key with its default and what it means, from the schema itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from hatch_ray.config import config_class, make_config
from hatch_ray.config_sections import Trained

INTRODUCTION = """\
# Configuration

A run is one YAML file (`configs/`) and any number of `key=value` changes on the command line:

    hatch train configs/tiny.yaml grpo.beta=0.02 run_dir=runs/mine
    hatch train configs/tiny.yaml --dry-run

A key that does not exist is refused with the nearest one that does. The resolved config is saved in the run folder;
a run folder is resumed only with the config that it was made with (resources, `stages`, `eval` and `serve` may differ).

Every key with its default, as `hatch config` prints it. STAGE is pasta, qa_sft, cold_start or grpo: these keys are the
same in all four.
"""


SHARED = "STAGE"
"""Stands for every stage's section, where all have a key."""


def fields(section: type[BaseModel] | None = None, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted key, default, description) of every key of HATCH's config; those of all stages once, as STAGE.KEY."""
    shared = set(Trained.model_fields)
    if section is None:
        section = config_class("hatch")
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
        elif name not in shared or not issubclass(section, Trained):
            default = make_config({})
            for part in f"{prefix}{name}".split("."):
                default = getattr(default, part)
            yield prefix + name, default, _words(field)
    if not prefix:
        for name, field in Trained.model_fields.items():
            yield f"{SHARED}.{name}", field.default, _words(field)


def _words(field: Any) -> str:
    return " ".join((field.description or "").split())


def reference() -> str:
    """The page in Markdown."""
    lines = [INTRODUCTION]
    for key, default, meaning in fields():
        shown = "[" + ", ".join(default) + "]" if isinstance(default, list) else str(default)
        lines.append(f"- `{key}={shown}`: {meaning}")
    return "\n".join(lines) + "\n"
