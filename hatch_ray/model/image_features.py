"""The image encoder's output for the images of a batch. What a frozen encoder gave is kept: it need not run again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hatch_ray.model.base import any_learns
from hatch_ray.model.families import family_of
from hatch_ray.model.prompt_tokens import ImagePatches

KEPT_BYTES = 256 * 2**20
"""Features of a frozen encoder kept in memory."""


def blank_image(visual: nn.Module) -> ImagePatches:
    """The smallest image: patches of one token."""
    config: Any = visual.config
    side = config.spatial_merge_size
    values = config.in_channels * config.temporal_patch_size * config.patch_size**2
    return ImagePatches(torch.zeros(side * side, values), (1, side, side), "")


class ImageEncoder:
    """Encodes images with `visual`, a known family's encoder. `encoded` counts the images that it really ran on."""

    def __init__(self, visual: nn.Module, kept_bytes: int = KEPT_BYTES) -> None:
        self.visual = visual
        self._family = family_of(visual.config)
        self._merged = self._family.patches_per_token(vars(visual.config))
        self.kept_bytes = kept_bytes
        self.encoded = 0
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._bytes = 0

    @property
    def frozen(self) -> bool:
        """Whether nothing of the encoder learns."""
        return not any_learns(self.visual)

    def __call__(self, images: Sequence[ImagePatches]) -> torch.Tensor:
        """(merged patches of all images in a row, levels * d), as `Family.encode`."""
        if not self.frozen:
            return self._encode(images)
        unknown = {image.key: image for image in images if image.key and image.key not in self._kept}
        nameless = [image for image in images if not image.key]
        fresh = [*unknown.values(), *nameless]
        parts: dict[object, torch.Tensor] = {image.key: self._kept[image.key] for image in images
                                             if image.key in self._kept}  # fmt: skip
        if fresh:
            with torch.no_grad():
                rows = self._encode(fresh).split([image.patches // self._merged for image in fresh])
            parts |= {image.key or id(image): row for image, row in zip(fresh, rows, strict=True)}
            for image, row in zip(fresh, rows, strict=True):
                self._keep(image.key, row)
        for key in parts.keys() & self._kept.keys():
            self._kept.move_to_end(str(key))
        return torch.cat([parts[image.key or id(image)] for image in images])

    def _encode(self, images: Sequence[ImagePatches]) -> torch.Tensor:
        self.encoded += len(images)
        weight = next(self.visual.parameters())
        pixels = torch.cat([image.pixels for image in images]).to(weight.device, weight.dtype)
        grids = torch.tensor([image.grid for image in images], device=weight.device)
        return self._family.encode(self.visual, pixels, grids)

    def _keep(self, key: str, features: torch.Tensor) -> None:
        if not key:
            return
        self._kept[key] = features.clone()
        self._bytes += features.nbytes
        while self._bytes > self.kept_bytes and self._kept:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
