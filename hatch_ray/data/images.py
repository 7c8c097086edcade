"""Pixels: colour and depth files, the copy of an image that the model sees, and its content hash."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from hatch_ray.data.markers import draw_marks
from hatch_ray.sample import Sample

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is read. Pillow knows more, some through outside programs (PostScript), which no file may start."""
MAX_PIXELS = 50_000_000
"""A small file can decode to gigabytes; a phone's photo has 12 to 50 million pixels."""
MIN_SIDE = 28
"""Pixels: one patch of the encoder after its merger."""
MAX_ASPECT = 100
MILLIMETRES = 1000.0
NO_READING = (0, 65535)
"""Values of a depth PNG that mean "no reading": 0 (everywhere), 65535 (7-Scenes)."""


def load_image(path: str | Path) -> Image.Image:
    """A colour file as RGB, fully decoded; CMYK, grey and palette images are converted, transparency is dropped.

    Raises ValueError naming the file, the reason and the mend when it is absent, empty, truncated or not an image, has
    too many pixels, several frames, or a shape that the model cannot see, holds depth, or is to be turned by its EXIF
    data: marks, intrinsics and depth belong to the pixels as they are stored.
    """
    image = _decode(Path(path), "image")
    _check_sides(path, image)
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        raise ValueError(f"image {path} has mode {image.mode}, as depth maps do; give the colour image")
    turned = image.getexif().get(ExifTags.Base.Orientation, 1)
    if turned != 1:
        raise ValueError(f"image {path} is stored turned (EXIF orientation {turned}); save it upright, without the tag")
    return image if image.mode == "RGB" else image.convert("RGB")


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) from the file's header, nothing decoded. Raises ValueError as `load_image` does for a header."""
    with _open(Path(path), "image") as image:
        _check_sides(path, image)
        return image.size


def load_depth(path: str | Path) -> np.ndarray:
    """A 16-bit PNG in millimetres as (h, w) float32 z-depth in metres; 0 where there is no reading.

    Raises ValueError naming the file and the reason when it cannot be read or is not a 16-bit single-channel image.
    """
    image = _decode(Path(path), "depth image")
    if image.mode not in ("I;16", "I;16B", "I"):
        raise ValueError(f"depth image {path} has mode {image.mode}; depth must be a 16-bit PNG in millimetres")
    millimetres = np.asarray(image)
    depth = millimetres.astype(np.float32) / np.float32(MILLIMETRES)
    depth[np.isin(millimetres, NO_READING)] = 0
    return depth


def _decode(path: Path, what: str) -> Image.Image:
    with _open(path, what) as image:
        try:
            image.load()
            image.getexif()
        except Exception as error:  # noqa: BLE001 - see `_undecodable`
            raise _undecodable(path, what, error) from None
        return image


def _open(path: Path, what: str) -> Image.Image:
    """The image with its header read and found good, no pixel decoded."""
    if not path.is_file():
        raise ValueError(f"{what} {path} does not exist")
    if path.stat().st_size == 0:
        raise ValueError(f"{what} {path} is empty; copy or write it again")
    try:
        with warnings.catch_warnings():
            # Our own limit is lower than the size at which Pillow warns.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
        frames = getattr(image, "n_frames", 1)
    except Image.DecompressionBombError:
        raise _too_large(path, what) from None
    except Exception as error:  # noqa: BLE001 - see `_undecodable`
        raise _undecodable(path, what, error) from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise _too_large(path, what)
    # A phone's JPEG can hold a second picture (MPO), a preview or a depth map; the first is the photo.
    if frames > 1 and image.format != "MPO":
        image.close()
        raise ValueError(f"{what} {path} has {frames} frames; write the one that is meant as an image of its own")
    return image


def _undecodable(path: Path, what: str, error: Exception) -> ValueError:
    """Pillow's readers raise whatever their parsing of damaged bytes runs into, not only OSError."""
    return ValueError(f"{what} {path} cannot be decoded ({error or type(error).__name__}); copy or write it again")


def _too_large(path: Path, what: str) -> ValueError:
    return ValueError(f"{what} {path} has too many pixels (over {MAX_PIXELS}); scale it down")


def _check_sides(path: str | Path, image: Image.Image) -> None:
    short, long = sorted(image.size)
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        raise ValueError(
            f"image {path} is {image.width} x {image.height}; give one with sides of at least {MIN_SIDE} pixels and a "
            f"ratio of at most {MAX_ASPECT}:1"
        )


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


def model_image(sample: Sample, index: int, max_pixels: int) -> Image.Image:
    """What the model sees of one view: its marks drawn at native resolution, then scaled down to `max_pixels`."""
    marks = [mark for mark in sample.marks if mark.view == index]
    return shrink(draw_marks(load_image(sample.views[index].image_path), marks), max_pixels)


def model_images(sample: Sample, max_pixels: int) -> list[Image.Image]:
    """`model_image` of every view, in order.

    The files on disk stay unmarked: PaStA and depth use those. Raises ValueError when a file cannot be read or a mark
    names a view that the sample does not have.
    """
    for mark in sample.marks:
        if not 0 <= mark.view < len(sample.views):
            raise ValueError(f"sample {sample.id} marks view {mark.view} but has {len(sample.views)} views")
    return [model_image(sample, index, max_pixels) for index in range(len(sample.views))]


def image_hash(image: Image.Image) -> str:
    """32 hex digits that name the pixels: equal for equal size, mode and content, whatever file they came from."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{image.mode}:{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
