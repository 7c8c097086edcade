"""Pictures for tests that need an image but no scene."""

import numpy as np
from PIL import Image


def photo(seed: int, width: int = 112, height: int = 112) -> Image.Image:
    """A smooth coloured picture, the same for the same seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (7, 7, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)
