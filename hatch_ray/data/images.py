"""Pixels: colour and depth files read and written, images scaled down, and their content hash."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is read. Pillow knows more, some through outside programs (PostScript), which no file may start."""
MAX_PIXELS = 50_000_000
"""A small file can decode to gigabytes; a phone's photo has 12 to 50 million pixels."""
MIN_SIDE = 28
"""Pixels: one merged patch of Qwen2.5-VL. Qwen3-VL's is 32, and its processor enlarges what is smaller."""
MAX_ASPECT = 100
MILLIMETRES = 1000.0
NO_READING = (0, 65535)
"""Values of a depth PNG that mean "no reading": 0 (everywhere), 65535 (7-Scenes)."""


class ImageRefused(ValueError):
    """A picture that cannot be used; `reason` is a stable name for counting: missing, empty_image, not_an_image,
    corrupt_image, too_many_pixels, animated_image, bad_image_size, not_a_colour_image, stored_turned.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason

    @property
    def fault(self) -> str:
        """`reason` for counting rows: what cannot be decoded is one fault."""
        decoded = {"animated_image": "animated", "bad_image_size": "of_bad_size", "not_a_colour_image": "not_in_colour"}
        if self.reason in ("empty_image", "not_an_image", "corrupt_image"):
            return "unreadable_image"
        return f"image_{decoded.get(self.reason, self.reason)}"


def check_header(data: bytes, name: str) -> None:
    """Raise ImageRefused as `load_stored` does for what the header tells; nothing is decoded."""
    with _open(data, name) as image:
        _check_colour(image, name)


def load_stored(source: Path | bytes, name: str, formats: tuple[str, ...] = FORMATS) -> tuple[Image.Image, int]:
    """RGB pixels as they are stored, fully decoded, and the EXIF orientation (1: upright). The one reader of colour.

    source: a file, or the bytes of one; name: what messages call it. CMYK, grey and palette images are converted,
    transparency is dropped. Raises ImageRefused (a ValueError) with the name, the reason and the fix when it is
    absent, empty, truncated or not an image, has too many pixels, several frames, or a shape that the model cannot
    see, or holds depth.
    """
    return _as_rgb(_decode(source, name, formats=formats), name)


def decoded_upright(image: Image.Image, name: str) -> Image.Image:
    """`load_upright` for a picture that another library has opened. Raises ImageRefused."""
    _check_shape(image, name, "image")
    return upright(*_as_rgb(image, name))


def _as_rgb(image: Image.Image, name: str) -> tuple[Image.Image, int]:
    _check_colour(image, name)
    orientation = _orientation(image)
    return (image if image.mode == "RGB" else image.convert("RGB")), orientation


def _orientation(image: Image.Image) -> int:
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


TURNS = dict(enumerate((
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
), start=2))  # fmt: skip
"""What makes pixels upright that are stored with an EXIF orientation."""


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The pixels as the photo is to be seen."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def load_upright(source: Path | bytes, name: str, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """A photo as it is to be seen, as RGB. For pictures without depth, intrinsics and marks. Raises ImageRefused."""
    return upright(*load_stored(source, name, formats))


def load_image(path: str | Path) -> Image.Image:
    """A colour file whose pixels marks, intrinsics and depth belong to, as RGB.

    Raises ImageRefused as `load_stored`, and when EXIF says that it is stored turned.
    """
    image, orientation = load_stored(Path(path), str(path))
    if orientation != 1:
        text = f"image {path} is stored turned (EXIF orientation {orientation}); save it upright, without the tag"
        raise ImageRefused("stored_turned", text)
    return image


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) from the file's header, nothing decoded. Raises ImageRefused as `load_stored` for a header."""
    with _open(Path(path), str(path)) as image:
        return image.size


def exif_orientation(path: str | Path) -> int:
    """1 (upright) to 8 from the file's header, nothing decoded. Raises ImageRefused as `load_stored` for a header."""
    with _open(Path(path), str(path), "image") as image:
        return _orientation(image)


def load_depth(path: str | Path) -> np.ndarray:
    """A 16-bit PNG in millimetres as (h, w) float32 z-depth in metres; 0 where there is no reading.

    Raises ValueError naming the file and the reason when it cannot be read or is not a 16-bit single-channel image.
    """
    image = _decode(Path(path), str(path), "depth image")
    if image.mode not in ("I;16", "I;16B", "I"):
        raise ValueError(f"depth image {path} has mode {image.mode}; depth must be a 16-bit PNG in millimetres")
    millimetres = np.asarray(image)
    depth = millimetres.astype(np.float32) / np.float32(MILLIMETRES)
    depth[np.isin(millimetres, NO_READING)] = 0
    return depth


def _decode(source: Path | bytes, name: str, what: str = "image", formats: tuple[str, ...] = FORMATS) -> Image.Image:
    with _open(source, name, what, formats) as image:
        try:
            image.load()
            image.getexif()
        except Exception as error:  # noqa: BLE001 - see `_undecodable`
            raise _undecodable(name, what, error, "corrupt_image") from None
        return image


def _open(source: Path | bytes, name: str, what: str = "image", formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The image with its header read and found good, no pixel decoded."""
    if isinstance(source, Path) and not source.is_file():
        raise ImageRefused("missing", f"{what} {name} does not exist")
    if not (source if isinstance(source, bytes) else source.stat().st_size):
        raise ImageRefused("empty_image", f"{what} {name} is empty; copy or write it again")
    try:
        with warnings.catch_warnings():
            # Our own limit is lower than the size at which Pillow warns.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
        _ = getattr(image, "n_frames", 1)
    except Image.DecompressionBombError:
        raise _too_large(name, what) from None
    except Exception as error:  # noqa: BLE001 - see `_undecodable`
        raise _undecodable(name, what, error, "not_an_image") from None
    try:
        if image.width * image.height > MAX_PIXELS:
            raise _too_large(name, what)
        _check_shape(image, name, what)
    except ImageRefused:
        image.close()
        raise
    return image


def _check_shape(image: Image.Image, name: str, what: str) -> None:
    """Raise ImageRefused for several frames, and for a picture's sides that the model cannot see."""
    frames = getattr(image, "n_frames", 1)
    # A phone's JPEG can hold a second picture (MPO), a preview or a depth map; the first is the photo.
    if frames > 1 and image.format != "MPO":
        text = f"{what} {name} has {frames} frames; write the one that is meant as an image of its own"
        raise ImageRefused("animated_image", text)
    short, long = sorted(image.size)
    if what == "image" and (short < MIN_SIDE or long > MAX_ASPECT * short):
        raise ImageRefused(
            "bad_image_size",
            f"image {name} is {image.width} x {image.height}; give one with sides of at least {MIN_SIDE} pixels and a "
            f"ratio of at most {MAX_ASPECT}:1",
        )


def _undecodable(name: str, what: str, error: Exception, reason: str) -> ImageRefused:
    """Pillow's readers raise whatever their parsing of damaged bytes runs into, not only OSError."""
    why = "no known kind of image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    return ImageRefused(reason, f"{what} {name} cannot be decoded ({why}); copy or write it again")


def _too_large(name: str, what: str) -> ImageRefused:
    return ImageRefused("too_many_pixels", f"{what} {name} has too many pixels (over {MAX_PIXELS}); scale it down")


def _check_colour(image: Image.Image, name: str) -> None:
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        text = f"image {name} has mode {image.mode}, as depth maps do; give the colour image"
        raise ImageRefused("not_a_colour_image", text)


def save_image(path: Path, rgb: np.ndarray) -> None:
    """Write (H, W, 3) uint8 as a lossless file (PNG), atomically."""
    _save(path, Image.fromarray(np.ascontiguousarray(rgb)))


def save_depth(path: Path, depth: np.ndarray) -> None:
    """Write (h, w) metres as a 16-bit PNG in millimetres, atomically; beyond 65.534 m there is no reading."""
    millimetres = np.rint(np.asarray(depth, dtype=np.float64) * MILLIMETRES)
    millimetres[~np.isfinite(millimetres) | (millimetres < 0) | (millimetres >= NO_READING[1])] = 0
    _save(path, Image.fromarray(millimetres.astype(np.uint16)))


def _save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    image.save(temporary, format="PNG", compress_level=1)
    os.replace(temporary, path)


def shrunk_size(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """The (width, height) that `shrink` gives an image."""
    if width * height <= max_pixels:
        return width, height
    scale = (max_pixels / (width * height)) ** 0.5
    return max(1, int(width * scale)), max(1, int(height * scale))


def shrink(image: Image.Image, max_pixels: int) -> Image.Image:
    """The image itself, or a smaller copy of the same shape with at most `max_pixels` pixels."""
    size = shrunk_size(image.width, image.height, max_pixels)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def image_hash(image: Image.Image) -> str:
    """32 hex digits that name the pixels: equal for equal size, mode and content, whatever file they came from."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{image.mode}:{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
