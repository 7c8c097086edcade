"""The form of a reply as a grammar (EBNF as xgrammar and vLLM's structured outputs take it), so that it always parses.

Made from the same tables as the prompt and the parser: the vocabulary of actions and its limits, SPAR's words for a
view change, the blocks of each mode. It holds what training writes: degrees and coordinates are whole, metres have a
decimal.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from string import ascii_uppercase

from hatch_ray.geometry.actions import ATOMS, MAX_DEGREES, MAX_METRES
from hatch_ray.geometry.view_change import VIEW_CHANGE_WORDS
from hatch_ray.protocol.prompt import Mode, format_plans, plans_in_words, reply_mode
from hatch_ray.sample import Atom

MAX_STEPS = 6
"""Steps of one pair: the teacher's longest list turns twice, moves twice and turns twice."""
MAX_TEXT_CHARS = 80
"""Of an answer in text."""
MAX_NUMBER = 999_999
SYNONYMS = ("move_back",)
"""Words that the parser takes and training does not write."""

LONGEST_ANSWER: dict[str, str] = {
    "letter": "A",
    "number": f"-{MAX_NUMBER}.99",
    "box": "[1000,1000,1000,1000]",
    "camera_motion": "(1000,1000),19.9",
    "view_change": "move_right:19.9,move_down:19.9,move_backward:19.9,rotate_down:360,rotate_right:360",
    "text": "1 " * (MAX_TEXT_CHARS // 2),
}


def reply_grammar(n_views: int, form: str, mode: Mode, options: int, fits: Callable[[str], bool]) -> str:
    """The grammar of a reply to a prompt with `n_views` images that was asked in this form and mode.

    options: how many lettered choices there are, 0: any letter. fits: whether a text is short enough; each pair gets as
    many steps, MAX_STEPS at most, as the longest reply may have. Raises ValueError when not even one step a pair fits.
    """
    mode = reply_mode(mode, n_views)
    fewest = 0 if mode == "direct" else 1
    most = 0 if mode == "direct" else MAX_STEPS
    steps = next((n for n in range(most, fewest - 1, -1) if _fits(n, n_views, form, mode, fits)), None)
    if steps is None:
        pairs = n_views * (n_views - 1) // 2
        raise ValueError(f"a whole reply with {pairs} pairs of images and a {form} does not fit into max_tokens")
    rules = {
        "root": f'{_reasoning(mode, n_views)} "<answer>" answer "</answer>"'.strip(),
        "answer": _answer(form, options),
        "degrees": _up_to(int(MAX_DEGREES)),
        "metres": f'({_up_to(int(MAX_METRES) - 1)}) "." [0-9] | "{MAX_METRES:.1f}"',
        "coordinate": _up_to(1000),
    }
    if mode == "actions":
        rules["steps"] = f'"" | step ("," step){{0,{steps - 1}}}'
        rules["step"] = " | ".join(f'"{{\\"{name}\\":" {_size(name)} "}}"' for name in ATOMS)
    elif mode == "language":
        rules["steps"] = f'"stay" | step (", " step){{0,{steps - 1}}}'
        rules["step"] = " | ".join(_step_in_words(name) for name in ATOMS)
    return "\n".join(f"{name} ::= {rule}" for name, rule in rules.items())


def _reasoning(mode: Mode, n_views: int) -> str:
    """The block before the answer: every pair once, in order."""
    pairs = list(combinations(range(n_views), 2))
    if mode == "actions":
        entries = [rf'"{{\"from\":{i},\"to\":{j},\"action\":[" steps "]}}"' for i, j in pairs]
        return '"<action>[" ' + ' "," '.join(entries) + ' "]</action>"'
    if mode == "language":
        return '"<think>" ' + ' " " '.join(f'"Image {i} to image {j}: " steps "."' for i, j in pairs) + ' "</think>"'
    return ""


def _size(name: str) -> str:
    return "degrees" if name.endswith("_deg") else "metres"


def _step_in_words(name: str) -> str:
    """The sentence of `plans_in_words` with the number left open."""
    sentence = plans_in_words({(0, 1): ((name, 7.0),)}).removeprefix("Image 0 to image 1: ").removesuffix(".")
    before, _, after = sentence.partition("7 " if name.endswith("_deg") else "7.0 ")
    return f'"{before}" {_size(name)} " {after}"'


def _answer(form: str, options: int) -> str:
    match form:
        case "letter":
            return f"[A-{ascii_uppercase[options - 1] if options else 'Z'}]"
        case "number":
            return f'"-"? ({_up_to(MAX_NUMBER)}) ("." [0-9]{{1,2}})?'
        case "box":
            return '"[" coordinate "," coordinate "," coordinate "," coordinate "]"'
        case "camera_motion":
            return '"(" coordinate "," coordinate ")," metres'
        case "view_change":
            words: dict[str, list[str]] = {"right": [], "up": [], "forward": [], "pitch": [], "yaw": []}
            for word, (dimension, _) in VIEW_CHANGE_WORDS.items():
                if word not in SYNONYMS:
                    words[dimension].append(f'"{word}:"')
            sizes = {"pitch": "degrees", "yaw": "degrees"}
            return ' "," '.join(f"({' | '.join(two)}) {sizes.get(key, 'metres')}" for key, two in words.items())
        case "text":
            return f"[0-9A-Za-z(\\[] [^<\\r\\n\\t]{{0,{MAX_TEXT_CHARS - 1}}}"
    raise ValueError(f"{form!r} is no answer form of HATCH")


def _up_to(limit: int) -> str:
    """Whole numbers from 0 to `limit` without leading zeros: 360 -> one digit, two digits, 100-299, 300-359, 360."""
    digits = str(limit)
    parts = ["[0-9]"] if len(digits) > 1 else []
    parts += [f"[1-9]{' [0-9]' * (length - 1)}" for length in range(2, len(digits))]
    for place, digit in enumerate(digits):
        last = place == len(digits) - 1
        low, high = (1 if place == 0 and len(digits) > 1 else 0), int(digit) if last else int(digit) - 1
        if low > high:
            continue
        prefix = f'"{digits[:place]}" ' if place else ""
        parts.append(f"{prefix}[{low}-{high}]{' [0-9]' * (len(digits) - place - 1)}")
    return " | ".join(parts)


def _fits(steps: int, n_views: int, form: str, mode: Mode, fits: Callable[[str], bool]) -> bool:
    longest = {"degrees": MAX_DEGREES, "metres": MAX_METRES - 0.1}
    return all(fits(_longest(((name, longest[_size(name)]),) * steps, n_views, form, mode)) for name in ATOMS)


def _longest(atoms: tuple[Atom, ...], n_views: int, form: str, mode: Mode) -> str:
    plans = dict.fromkeys(combinations(range(n_views), 2), atoms)
    reasoning = {
        "actions": f"<action>{format_plans(plans)}</action>",
        "language": f"<think>{plans_in_words(plans)}</think>",
        "direct": "",
    }[mode]
    return f"{reasoning}<answer>{LONGEST_ANSWER[form]}</answer>"
