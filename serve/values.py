"""An answer's text as the value that its form promises, read by the parsers that score answers in training."""

from __future__ import annotations

from hatch_ray.protocol.values import LETTER, numbers_in, parse_box, parse_view_change
from serve.schema import Value

VIEW_CHANGE_NAMES = {
    "move_right": "x",
    "move_up": "y",
    "move_forward": "z",
    "rotate_up": "pitch",
    "rotate_right": "yaw",
}


def typed_value(answer: str | None, form: str, options: int = 0) -> tuple[Value | None, str]:
    """(value, "") or (None, name of the problem).

    options: how many choices there were; a letter beyond them is none. 0: any letter.
    """
    if not answer:
        return None, "no_answer"
    match form:
        case "letter":
            return _letter(answer, options)
        case "number":
            values = numbers_in(answer)
            if len(values) == 1:
                return values[0], ""
            return None, "several_numbers" if values else "no_number"
        case "box":
            box = parse_box(answer)
            return (list(box), "") if box else (None, "bad_box")
        case "camera_motion":
            values = numbers_in(answer)
            named = dict(zip(("x", "y", "depth"), values, strict=False))
            return (named, "") if len(values) == 3 else (None, "not_three_numbers")
        case "view_change":
            signed = parse_view_change(answer)
            if signed is None:
                return None, "bad_view_change"
            return {name: signed[key] + 0.0 for name, key in VIEW_CHANGE_NAMES.items()}, ""
    return answer, ""  # text, and the forms of other systems


def _letter(answer: str, options: int) -> tuple[str | None, str]:
    found = LETTER.match(answer)
    if not found:
        return None, "no_letter"
    letter = found.group(1).upper()
    if options and ord(letter) - ord("A") >= options:
        return None, "letter_of_no_option"
    return letter, ""
