"""A reply of wide-baseline matching: [<thinking>..</thinking>]<answer>{"1": "3", "2": "none"}</answer>.

Reading never raises: each fault has a name, and what can still be read is returned. The authors' benchmark takes the
first fence of the reply, also one inside the reasoning; here a draft there counts for nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hatch_ray.protocol.response import MAX_ANSWER_CHARS, MAX_REPLY_CHARS

NONE = 0
"""What a mark without a partner is matched to: numbers of marks begin at 1."""
NONE_TEXT = "none"
THINKING = ("thinking", "think")
"""The paper's tag first; either is read."""
FENCE, FENCE_END = "```json", "```"
NUMBER = re.compile(r"[1-9][0-9]{0,2}")


@dataclass(frozen=True)
class Read:
    """What a reply says.

    pairs     number of the first photo -> number of the second, NONE, or None where the value is neither; of the
              photo's own numbers alone.
    unknown   keys that name no mark of the first photo.
    blocks    whether the reply is the blocks that were asked for, and nothing else.
    whole     whether the answer is an object with exactly the numbers of the first photo, once each, and legal values.
    problems  stable names, for counting.
    """

    pairs: dict[int, int | None] = field(default_factory=dict)
    unknown: int = 0
    problems: tuple[str, ...] = ()

    @property
    def blocks(self) -> bool:
        return not any(problem.startswith("blocks:") for problem in self.problems)

    @property
    def whole(self) -> bool:
        return not any(problem.startswith("mapping:") for problem in self.problems)


def read_reply(text: str, first: int, second: int, thinking: bool) -> Read:
    """Read a reply to photos with `first` and `second` marks. thinking: whether a reasoning block was asked for."""
    if len(text) > MAX_REPLY_CHARS:
        return Read(problems=("blocks:reply_too_long", "mapping:no_answer"))
    answer, problems = _blocks(text, thinking)
    if answer is None:
        return Read(problems=(*problems, "mapping:no_answer"))
    found = _object(answer)
    if isinstance(found, str):
        return Read(problems=(*problems, f"mapping:{found}"))
    pairs: dict[int, int | None] = {}
    unknown = 0
    for key, value in found:
        number = _number(key, "A")
        if number is None or number > first:
            unknown += 1
            problems.append("mapping:unknown_key")
            continue
        if number in pairs:
            problems.append("mapping:key_twice")
        pairs[number] = _target(value, second)
        if pairs[number] is None:
            problems.append("mapping:illegal_value")
    if len(pairs) < first:
        problems.append("mapping:missing_key")
    return Read(pairs, unknown, tuple(dict.fromkeys(problems)))


def write_reply(gold: Mapping[int, int]) -> str:
    """The reply that says this, without reasoning."""
    return f"<answer>{write_pairs(gold)}</answer>"


def write_pairs(pairs: Mapping[int, int | None]) -> str:
    """{"1":"3","2":"none"}; what is not legal is left out."""
    legal = {str(key): str(value) if value else NONE_TEXT for key, value in sorted(pairs.items()) if value is not None}
    return json.dumps(legal, separators=(",", ":"))


def _blocks(text: str, thinking: bool) -> tuple[str | None, list[str]]:
    """The text of the only answer block, and what is wrong with the blocks."""
    answer, problems = _only("answer", text)
    tag = next((tag for tag in THINKING if f"<{tag}>" in text), THINKING[0])
    thought, faults = _only(tag, text)
    if thinking:
        problems += faults
        problems += ["blocks:empty_thinking"] if thought is not None and not thought.strip() else []
    elif any(f"<{tag}>" in text for tag in THINKING):
        problems.append("blocks:unasked_thinking")
    if not problems:
        whole = (f"<{tag}>{thought}</{tag}>" if thinking else "", f"<answer>{answer}</answer>")
        before, found, rest = text.strip().partition(whole[0]) if thinking else ("", "", text.strip())
        if before or (thinking and not found) or rest.strip() != whole[1]:
            problems.append("blocks:text_outside_or_order")
    if answer is not None and len(answer) > MAX_ANSWER_CHARS:
        return None, [*problems, "blocks:answer_too_long"]
    return answer, problems


def _only(tag: str, text: str) -> tuple[str | None, list[str]]:
    """What the one block of this tag holds; None, and why, where there is none or several."""
    opened, closed = text.count(f"<{tag}>"), text.count(f"</{tag}>")
    if not opened:
        return None, [f"blocks:no_{tag}"]
    if opened > 1 or closed > 1:
        return None, [f"blocks:several_{tag}"]
    held, closing, _ = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")
    return (held, []) if closing else (None, [f"blocks:unclosed_{tag}"])


class _Refused(ValueError):
    """A constant that JSON does not have."""


def _refuse(name: str) -> float:
    raise _Refused(name)


def _object(answer: str) -> list[tuple[str, Any]] | str:
    """The entries of the answer's object, those given twice too; else the name of the fault.

    It lies in the last fence, else between the outermost braces.
    """
    start = answer.rfind(FENCE)
    end = answer.find(FENCE_END, start + len(FENCE)) if start >= 0 else -1
    if end >= 0:
        text = answer[start + len(FENCE) : end]
    else:
        left, right = answer.find("{"), answer.rfind("}")
        if not 0 <= left < right:
            return "no_object"
        text = answer[left : right + 1]
    try:
        found = json.loads(text, parse_constant=_refuse, object_pairs_hook=_Entries)
    except (ValueError, RecursionError):
        return "bad_json"
    return list(found) if isinstance(found, _Entries) else "no_object"


class _Entries(list[tuple[str, Any]]):
    """An object with all its entries; a list of JSON is none."""


def _number(value: Any, letter: str) -> int | None:
    """The number that "3", "A-3", "#3" or 3 means. A bool, a fraction or another script's digits mean none."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    if isinstance(value, int):
        return value if 0 < value < 1000 else None
    text = value.strip()
    text = text.removeprefix("#") if text.startswith("#") else text.removeprefix(f"{letter}-")
    return int(text) if NUMBER.fullmatch(text) else None


def _target(value: Any, second: int) -> int | None:
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", NONE_TEXT)):
        return NONE
    number = _number(value, "B")
    return number if number is not None and number <= second else None
