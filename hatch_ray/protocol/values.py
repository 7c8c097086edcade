"""What an answer says: the one reader of numbers, boxes, view changes and plain text."""

from __future__ import annotations

import re
import sys
import unicodedata

from hatch_ray.geometry.view_change import VIEW_CHANGE_WORDS

NUMBER = re.compile(r"(?<![\w.])(?:[-+]\s*)?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,2})?(?![\w]|\.\d)")
LARGEST = sys.float_info.max
LETTER = re.compile(r"\s*(?:\(\s*)?([A-Za-z])(?![A-Za-z0-9'])")
MAX_COORDINATE = 1e6
"""Coordinates are 0 to 1000; the area of a box inside this bound can be computed."""
OTHER_MINUSES = "\u00ad\u00af\u02c9\u02d7\u203e\u2043\u2052\u207b\u208b\u2212\u2500\u2501\u2796\u30fc\uff70"
"""Minus signs that Unicode does not class as dashes: soft hyphen, macrons, superscript, the minus itself, .."""
MINUS_WORDS = re.compile(
    r"(?<![^\W\d_])(?:minus|negative|neg\.?|moins|menos|meno|负|負|マイナス)\s*(?=[-+]?\s*[\d.])", re.IGNORECASE
)

AXES = {"right": "x", "up": "y", "forward": "z"}
VIEW_DIMENSIONS = {
    word: (AXES.get(dimension, dimension), sign) for word, (dimension, sign) in VIEW_CHANGE_WORDS.items()
}
"""Word of a view change -> (x, y, z, yaw or pitch; sign)."""


def plain_minus(text: str) -> str:
    """The text with every script's minus, dash or word for it before a number as "-"; marks of direction left out."""
    if text.isascii() and not MINUS_WORDS.search(text):
        return text
    letters = []
    for letter in text:
        kind = "" if letter.isascii() else unicodedata.category(letter)
        if letter in OTHER_MINUSES or kind == "Pd":
            letters.append("-")
        elif kind != "Cf":
            letters.append(letter)
    return MINUS_WORDS.sub("-", "".join(letters))


def numbers_in(text: str) -> list[float]:
    """Every signed number that stands alone in the text; one too large for a float is the largest float.

    Any script's minus counts, also with a space after it or as a word.
    """
    found = NUMBER.findall(plain_minus(text))
    return [max(-LARGEST, min(LARGEST, float("".join(number.split())))) for number in found]


def parse_box(text: str) -> tuple[float, float, float, float] | None:
    """Four numbers x1, y1, x2, y2 up to MAX_COORDINATE with a positive area; corners in the other order are swapped."""
    values = numbers_in(text)
    if len(values) != 4 or any(abs(value) > MAX_COORDINATE for value in values):
        return None
    x1, y1, x2, y2 = values
    if x1 > x2 and y1 > y2:
        x1, y1, x2, y2 = x2, y2, x1, y1
    # The product of two tiny sides can be 0.
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 and (x2 - x1) * (y2 - y1) > 0 else None


def parse_view_change(text: str) -> dict[str, float] | None:
    """ "move_left:2.6,move_down:0.1,..." as signed x (right), y (up), z (forward), yaw (right), pitch (up).

    Missing dimensions are 0; None when a piece is malformed, unknown or names a dimension twice.
    """
    dimensions: dict[str, float] = {}
    for piece in text.strip().rstrip(".,").split(","):
        key, colon, value = piece.partition(":")
        numbers = numbers_in(value)
        known = VIEW_DIMENSIONS.get(key.strip().lower())
        if not colon or known is None or len(numbers) != 1 or known[0] in dimensions:
            return None
        dimensions[known[0]] = known[1] * numbers[0]
    return {name: dimensions.get(name, 0.0) for name in ("x", "y", "z", "yaw", "pitch")}


def plain_text(text: str) -> str:
    """Lower case, without parentheses and their content, spaces collapsed."""
    return " ".join(re.sub(r"\([^()]*\)", " ", text.lower()).split()).strip(" .")


def gold_fault(gold: str, form: str) -> str | None:
    """Why no reply could earn anything against this gold answer, not even its copy; None where a copy earns 1."""
    match form:
        case "letter":
            alone = LETTER.match(gold) and len(gold.strip().strip("().").strip()) == 1
            return None if alone else "is_not_a_letter"
        case "number":
            return None if len(numbers_in(gold)) == 1 else "is_not_1_number"
        case "box":
            return None if parse_box(gold) is not None else "is_not_a_box"
        case "camera_motion":
            return None if len(numbers_in(gold)) == 3 else "is_not_3_numbers"
        case "view_change":
            return None if parse_view_change(gold) is not None else "is_not_a_view_change"
        case "text":
            return None if plain_text(gold) else "is_empty"
    raise ValueError(f"{form!r} is no answer form of HATCH")
