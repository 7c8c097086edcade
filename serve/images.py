"""Images from outside: base64 to RGB, with every doubt refused by name and before pixels are decoded."""

from __future__ import annotations

import base64
import re

from PIL import Image

from hatch_ray.data.images import MAX_ASPECT, MAX_PIXELS, MIN_SIDE, ImageRefused, load_upright
from serve.schema import Refusal

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""Told by the bytes, whatever the file is called."""
DATA_URI = re.compile(r"^data:image/[a-z0-9+.-]+(?:;[a-z0-9_-]+=[^;,]*)*;base64,", re.IGNORECASE)

REFUSED = {
    "not_an_image": ("the bytes are no image of a known format", f"send one of {', '.join(FORMATS)}"),
    "corrupt_image": ("the image cannot be decoded", "send the file again"),
    "empty_image": ("the image has no bytes", "send the file's bytes"),
    "too_many_pixels": (f"the image has more than {MAX_PIXELS} pixels", "scale it down before sending"),
    "bad_image_size": (
        "the image is too small or too thin",
        f"send one with sides of at least {MIN_SIDE} pixels and a ratio of at most {MAX_ASPECT}:1",
    ),
    "animated_image": ("the image has several frames", "send each frame as one image"),
    "not_a_colour_image": ("the image holds one value a pixel, as depth maps do", "send the colour image"),
}
"""Reason of `hatch_ray.data.images` -> what is wrong, and what to do."""


def decode_image(text: str, index: int) -> Image.Image:
    """One image of a request as upright RGB. Raises Refusal that names the image and what to do."""
    where = f"images.{index}"
    try:
        return load_upright(base64.b64decode(DATA_URI.sub("", text.strip(), count=1), validate=True), "", FORMATS)
    except ImageRefused as refusal:
        what, what_to_do = REFUSED[refusal.reason]
        if refusal.reason == "bad_image_size":
            what = str(refusal).partition(";")[0].replace("image  is", "the image is")
        raise Refusal(refusal.reason, what, where, what_to_do) from None
    except ValueError:  # of base64
        what_to_do = "encode the file's bytes as standard base64, without breaks"
        raise Refusal("bad_base64", "the text is not base64", where, what_to_do) from None
