"""Images from outside: base64 to RGB, with every doubt refused by name and before pixels are decoded."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings

from PIL import Image, ImageOps

from hatch_ray.data.images import MAX_ASPECT, MAX_PIXELS, MIN_SIDE
from serve.schema import Refusal

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""Told by the bytes, whatever the file is called."""
DATA_URI = re.compile(r"^data:image/[a-z+.-]+;base64,", re.IGNORECASE)

# Our own limit is lower than the size at which Pillow warns.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode_image(text: str, index: int) -> Image.Image:
    """One image of a request as upright RGB. Raises Refusal that names the image and the mend."""
    where = f"images.{index}"
    data = _bytes(text, where)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_large(where) from None
    except Exception:  # noqa: BLE001 - Pillow's readers raise whatever their parsing of odd bytes runs into
        raise Refusal(
            "not_an_image", "the bytes are no image of a known format", where, f"send one of {', '.join(FORMATS)}"
        ) from None
    _check(image, where)
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except Exception as error:  # noqa: BLE001 - as above
        raise Refusal("corrupt_image", f"the image cannot be decoded: {error}", where, "send the file again") from None
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _bytes(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(DATA_URI.sub("", text.strip(), count=1), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(
            "bad_base64", "the text is not base64", where, "encode the file's bytes as standard base64, without breaks"
        ) from None
    if not data:
        raise Refusal("empty_image", "the image has no bytes", where, "send the file's bytes")
    return data


def _too_large(where: str) -> Refusal:
    return Refusal(
        "too_many_pixels", f"the image has more than {MAX_PIXELS} pixels", where, "scale it down before sending"
    )


def _check(image: Image.Image, where: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(where)
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_ASPECT * min(width, height):
        raise Refusal(
            "bad_image_size",
            f"the image is {width} x {height}",
            where,
            f"send one with sides of at least {MIN_SIDE} pixels and a ratio of at most {MAX_ASPECT}:1",
        )
    frames = getattr(image, "n_frames", 1)
    # A phone's JPEG can hold a second picture (MPO), a preview or a depth map; the first is the photo.
    if frames > 1 and image.format != "MPO":
        raise Refusal("animated_image", f"the image has {frames} frames", where, "send each frame as one image")
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        raise Refusal(
            "not_a_colour_image", f"the image has mode {image.mode}, as depth maps do", where, "send the colour image"
        )
