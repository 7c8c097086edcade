"""The configuration as a page: every key with its default and what it means, from the schema itself."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from hatch_ray.config import config_class, known_fields, make_config
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


def fields() -> Iterator[tuple[str, Any, str]]:
    """(dotted key, default, description) of every key of HATCH's config; those of all stages once, as STAGE.KEY."""
    schema, defaults = config_class("hatch"), make_config({})
    stages = {name for name in schema.model_fields if isinstance(getattr(defaults, name), Trained)}
    for key, field in known_fields(schema):
        section, _, name = key.partition(".")
        if section not in stages or name not in Trained.model_fields:
            yield key, attrgetter(key)(defaults), field.description or ""
    for name, field in Trained.model_fields.items():
        yield f"STAGE.{name}", field.default, field.description or ""


def reference() -> str:
    """The page in Markdown."""
    lines = [INTRODUCTION]
    for key, default, meaning in fields():
        shown = "[" + ", ".join(default) + "]" if isinstance(default, list) else str(default)
        lines.append(f"- `{key}={shown}`: {' '.join(meaning.split())}")
    return "\n".join(lines) + "\n"
