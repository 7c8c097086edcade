"""What every page of this package is made with: templates, and images that lie in the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

T = TypeVar("T")
PNG_BELOW_PIXELS = 256 * 256
IMAGE_PIXELS = 320 * 320
"""Views are shrunk to this."""
ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
"""HTML is escaped, a missing name is an error."""


def render(template: str, **values: Any) -> str:
    """A page or picture of report/templates, filled in."""
    return ENVIRONMENT.get_template(template).render(**values)


def inline_image(image: Image.Image) -> str:
    """A data: URL; small images stay exact (PNG), large ones become JPEG."""
    buffer = io.BytesIO()
    kind = "png" if image.width * image.height <= PNG_BELOW_PIXELS else "jpeg"
    image.save(buffer, format=kind, **({"quality": 85} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def each_task_in_turn(items: Sequence[T], task: Callable[[T], str], count: int, seed: int) -> list[T]:
    """`count` of the items in random order, each task in turn."""
    queues: dict[str, list[T]] = {}
    for index in np.random.default_rng(seed).permutation(len(items)):
        queues.setdefault(task(items[index]), []).append(items[index])
    turns = zip_longest(*queues.values())
    return [item for turn in turns for item in turn if item is not None][:count]
