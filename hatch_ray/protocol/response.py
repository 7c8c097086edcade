"""What the model says: the parser that rewards, evaluation and the service share.

A reply is `<action>JSON</action><answer>text</answer>` (eq. 6), or `<think>words</think><answer>text</answer>` where
the model reasons in language. Parsing never raises: every fault is a named problem,
and whatever is still readable is returned, because the terms of the reward are judged separately.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hatch_ray.geometry.actions import check_atoms
from hatch_ray.protocol.prompt import Mode, reply_mode
from hatch_ray.sample import Atom

BLOCKS = ("action", "think", "answer")
REASONING_BLOCK: dict[Mode, str | None] = {"actions": "action", "language": "think", "direct": None}
"""The block that each mode wants before the answer."""

MAX_REPLY_CHARS = 100_000
"""Nothing of a longer reply is read. These bounds keep the cost of any string small: longer ones are runaway
generations (1,024 tokens are about 5,000 characters)."""
MAX_BLOCK_CHARS = 20_000
"""A longer action block is not parsed."""
MAX_ANSWER_CHARS = 2_000
"""A longer answer is none: no scorer, metric or page has to take it."""


@dataclass(frozen=True)
class Response:
    """A parsed reply.

    plans      the action list of each readable pair (i, j), i < j.
    answer     the text of the only answer block, stripped; None when there is none, more than one, or one of over
               MAX_ANSWER_CHARS.
    problems   what is wrong, as stable names ("no_action_block", "bad_json", "missing_pair", ...), for counting.
    format_ok  R_format of eq. 11: blocks closed, once each, in order, nothing outside; JSON parses; all pairs covered.
               In language mode the think block must hold some text; what it says cannot be verified.
    """

    plans: dict[tuple[int, int], tuple[Atom, ...]] = field(default_factory=dict)
    answer: str | None = None
    problems: tuple[str, ...] = ()

    @property
    def format_ok(self) -> bool:
        return not self.problems


class _BadPlan(ValueError):
    """Carries the name of the problem."""


def parse_response(text: str, n_views: int, mode: Mode = "actions") -> Response:
    """Parse one reply to a prompt with `n_views` images that was asked in this mode (a single view always directly)."""
    if len(text) > MAX_REPLY_CHARS:
        return Response(problems=("reply_too_long",))
    due = REASONING_BLOCK[reply_mode(mode, n_views)]
    found = {name: _cut(name, text)[0] for name in BLOCKS}
    problems = _count_blocks("answer", text, len(found["answer"]))
    answer = found["answer"][0].strip() if len(found["answer"]) == 1 else None
    if answer == "":
        problems.append("empty_answer")
    elif answer and len(answer) > MAX_ANSWER_CHARS:
        problems.append("answer_too_long")
        answer = None
    plans: dict[tuple[int, int], tuple[Atom, ...]] = {}
    for name in ("action", "think"):
        if name != due:
            problems += [f"unasked_{name}_block"] if found[name] else []
            continue
        problems += _count_blocks(name, text, len(found[name]))
        if len(found[name]) == 1 and name == "action":
            plans, faults = parse_plans(found[name][0], n_views)
            problems += faults
        elif len(found[name]) == 1:
            words = _cut("answer", found[name][0])[1].strip()
            problems += [] if words else ["empty_think_block"]
            problems += ["answer_inside_think"] if "<answer>" in found[name][0] else []
    if not problems:
        outside = text
        for name in BLOCKS:
            outside = _cut(name, outside)[1]
        if outside.strip():
            problems.append("text_outside_blocks")
        if due and text.index(f"<{due}>") > text.index("<answer>"):
            problems.append(f"answer_before_{due}")
    return Response(plans, answer, tuple(dict.fromkeys(problems)))


def _cut(name: str, text: str) -> tuple[list[str], str]:
    """What the closed blocks of this name hold, and the text without them.

    A pattern `<name>(.*?)</name>` says the same, but searches the whole text again at each opening without an end.
    """
    opening, closing = f"<{name}>", f"</{name}>"
    held: list[str] = []
    outside: list[str] = []
    end = 0
    while (start := text.find(opening, end)) >= 0:
        stop = text.find(closing, start + len(opening))
        if stop < 0:
            break
        held.append(text[start + len(opening) : stop])
        outside.append(text[end:start])
        end = stop + len(closing)
    return held, "".join(outside) + text[end:]


def _count_blocks(name: str, text: str, closed: int) -> list[str]:
    opened = text.count(f"<{name}>")
    if closed == 0:
        return [f"unclosed_{name}_block" if opened else f"no_{name}_block"]
    if closed > 1 or opened > 1:
        return [f"several_{name}_blocks"]
    return []


def _refuse_constant(name: str) -> float:
    raise _BadPlan("bad_json")


def _unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    if len({key for key, _ in pairs}) != len(pairs):
        raise _BadPlan("bad_json")
    return dict(pairs)


def parse_plans(block: str, n_views: int) -> tuple[dict[tuple[int, int], tuple[Atom, ...]], list[str]]:
    """The action lists of one block, and the problems met.

    A pair that appears twice counts as not given, whichever of the two is right; a malformed entry costs its own pair
    only. Extra pairs, such as a reversed (j, i), are a problem and are left out.
    """
    if len(block) > MAX_BLOCK_CHARS:
        return {}, ["action_block_too_long"]
    try:
        entries = json.loads(block, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError):
        return {}, ["bad_json"]
    if not isinstance(entries, list):
        return {}, ["not_a_list"]
    required = {(i, j) for i in range(n_views) for j in range(i + 1, n_views)}
    plans: dict[tuple[int, int], tuple[Atom, ...]] = {}
    seen: set[tuple[int, int]] = set()
    problems: list[str] = []
    for entry in entries:
        try:
            pair, atoms = _parse_entry(entry, required)
        except _BadPlan as problem:
            problems.append(str(problem))
            continue
        if pair in seen:
            problems.append("duplicate_pair")
            plans.pop(pair, None)
            continue
        seen.add(pair)
        plans[pair] = atoms
    if required - set(plans):
        problems.append("missing_pair")
    return plans, problems


def _parse_entry(entry: Any, required: set[tuple[int, int]]) -> tuple[tuple[int, int], tuple[Atom, ...]]:
    if not isinstance(entry, dict) or set(entry) != {"from", "to", "action"}:
        raise _BadPlan("bad_entry")
    source, target, steps = entry["from"], entry["to"], entry["action"]
    if type(source) is not int or type(target) is not int or not isinstance(steps, list):
        raise _BadPlan("bad_entry")
    if (source, target) not in required:
        raise _BadPlan("unknown_pair")
    atoms = tuple(_parse_atom(step) for step in steps)
    try:
        check_atoms(atoms)
    except ValueError:
        raise _BadPlan("bad_action") from None
    return (source, target), atoms


def _parse_atom(step: Any) -> Atom:
    if not isinstance(step, dict) or len(step) != 1:
        raise _BadPlan("bad_action")
    ((name, value),) = step.items()
    if type(value) not in (int, float) or abs(value) > 1e6:
        raise _BadPlan("bad_action")
    return name, float(value)
