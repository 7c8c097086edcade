"""Processed images, kept in memory up to a limit: the same view is asked for many times in a stage."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from PIL import Image

from hatch_ray.model.prompt_tokens import ImagePatches, process_image

DEFAULT_BYTES = 512 * 2**20


class PixelCache:
    """What a model's processor makes of an image, the least recently used dropped beyond `max_bytes`."""

    def __init__(self, processor: Any, max_bytes: int = DEFAULT_BYTES) -> None:
        self.processor = processor
        self.max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[Hashable, ImagePatches] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[], Image.Image]) -> ImagePatches:
        """The patches of the image named `key`, made from load() when they are not held."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        entry = process_image(self.processor, load())
        self._entries[key] = entry
        self._bytes += entry.pixels.nbytes
        while self._bytes > self.max_bytes and len(self._entries) > 1:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= dropped.pixels.nbytes
        return entry
