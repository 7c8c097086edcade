"""Replies that no one would write: gold replies broken by the rules of their grammar, random text, and giants.

python -m tests.hostile    # the cost of each giant, with the dearest last
"""

from __future__ import annotations

import random
import re
import string
import time
from collections.abc import Callable, Sequence

from hatch_ray.config_sections import RewardConfig
from hatch_ray.protocol.prompt import Mode
from hatch_ray.protocol.response import MAX_ANSWER_CHARS, MAX_BLOCK_CHARS, MAX_REPLY_CHARS
from hatch_ray.rewards.terms import RewardTarget, score_reply
from hatch_ray.sample import ActionFrame, AnswerForm, PairPlan

ODD = (
    "<action>", "</action>", "<think>", "</think>", "<answer>", "</answer>", "<answer/>", "< answer>", "<ANSWER>",
    "NaN", "Infinity", "-Infinity", "nan", "inf", "1e999", "-1e999", "1e-999", "1e99", "-0.0", "0x10", "1_000",
    "9" * 30, "<", "0." + "0" * 400 + "1", "9" * 400, "٣", "１２", "೨.೫", "²", "½", "−3", "1e٣", "true", "null",
    '"to":1,', '{"turn_right_deg":1e3}', '{"move_up_m":-1}', '{"turn_up_deg":10},', '"', "\\", "\\ud800", "[", "]",
    "{", "}", '"from"',
    "[[[[[[", "}]}]", ",", ":", ".", "(", ")", "\x00", "\x1b[31m", "\ud800", "\udfff", "\u202e", "\u200b", "\ufeff",
    "\u2028", "\x85", "İ", "ß", "👩‍👩‍👧", "é", "\r\n", "\t", " ", "move_right:1", "move_right:inf,", "first image",
    "2nd image", "[0,0,1e-99,1e-99]", "[1,2,3]", "(500,500),2.0", "A", "b.", "(C)", "c", "-", "+", "e", "<|im_start|>",
    "<|image_pad|>",
)  # fmt: skip
LETTERS = string.printable + "٣１೨½é\u200b\u202e\x00\x1b\x85\u2028\ud800\udfff👩"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def mutate(text: str, others: Sequence[str], rng: random.Random) -> str:
    """One change of a reply: cut, doubled, moved, filled with odd pieces, or crossed with another reply."""
    a, b = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
    match rng.randrange(9):
        case 0:
            return text[:a]
        case 1:
            return text[:a] + text[b:]
        case 2:
            return text[:a] + text[a:b] * rng.randint(2, 3) + text[b:]
        case 3:
            return text[b:] + text[a:b] + text[:a]
        case 4:
            return text[:a] + rng.choice(ODD) + text[a:]
        case 5:
            return text[:a] + rng.choice(ODD) + text[b:]
        case 6:
            numbers = list(NUMBER.finditer(text))
            if not numbers:
                return text + rng.choice(ODD)
            chosen = rng.choice(numbers)
            return text[: chosen.start()] + rng.choice(ODD) + text[chosen.end() :]
        case 7:
            other = rng.choice(others)
            return text[:a] + other[rng.randrange(len(other)) :]
        case _:
            opening, closing = text.find("<answer>"), text.rfind("</answer>")
            return text[: opening + 8] + babble(rng) + text[closing:] if 0 <= opening < closing else babble(rng) + text


def babble(rng: random.Random) -> str:
    """Random letters, or odd pieces one after another."""
    if rng.random() < 0.5:
        return "".join(rng.choices(LETTERS, k=rng.randrange(40)))
    return "".join(rng.choices(ODD, k=rng.randrange(8)))


def hostile_reply(gold: str, others: Sequence[str], rng: random.Random) -> str:
    """Mostly a gold reply with one to three changes; else random text, bare or inside the blocks."""
    kind = rng.random()
    if kind < 0.1:
        return babble(rng)
    if kind < 0.2:
        return f"<{rng.choice(('action', 'think'))}>{babble(rng)}</action><answer>{babble(rng)}</answer>"
    for _ in range(rng.choice((1, 1, 2, 3))):
        gold = mutate(gold, others, rng)
    return gold


GOLD: dict[AnswerForm, str] = {
    "letter": "B", "number": "1.2", "box": "[1,2,30,40]", "camera_motion": "(10,20),1.5",
    "view_change": "move_right:1.0,rotate_up:10", "text": "the second image, [1,2,30,40] (red chair)",
}  # fmt: skip
ATOMS = (("turn_right_deg", 30.0), ("move_forward_m", 1.4), ("turn_left_deg", 12.0))
PLANS = tuple(PairPlan(i, j, ATOMS, ActionFrame(-5, 2)) for i in range(4) for j in range(i + 1, 4))


def target_of(form: AnswerForm, mode: Mode = "actions") -> RewardTarget:
    """Four views, gold actions for their six pairs."""
    return RewardTarget("s", 4, GOLD[form], form, PLANS, mode)


def filled(pattern: str, chars: int) -> str:
    """The pattern over and over, `chars` characters in all."""
    return (pattern * (chars // len(pattern) + 1))[:chars]


def action(text: str) -> str:
    return f"<action>{text}</action><answer>2.4</answer>"


def answer(text: str) -> str:
    return f"<action>[]</action><answer>{text}</answer>"


STEP, ENTRY = '{"turn_right_deg":1}', '{"from":0,"to":1,"action":[%s]}'
BLOCK = MAX_BLOCK_CHARS

BLOCKS: dict[str, str] = {
    "10,000 steps": action("[" + ENTRY % ",".join([STEP] * 10_000) + "]"),
    "as many steps as are read": action("[" + ENTRY % ",".join([STEP] * ((BLOCK - 40) // (len(STEP) + 1))) + "]"),
    "the same pair over and over": action("[" + ",".join([ENTRY % STEP] * (BLOCK // 54)) + "]"),
    "empty entries": action("[" + ",".join(["{}"] * (BLOCK // 3 - 1)) + "]"),
    "numbers for entries": action("[" + ",".join("1" * (BLOCK // 2 - 1)) + "]"),
    "one entry of many keys": action("[{" + ",".join(f'"{k}":1' for k in range(2_000)) + "}]"),
    "deep lists": action("[" * BLOCK),
    "deep lists, closed": action("[" * (BLOCK // 2) + "]" * (BLOCK // 2)),
    "deep objects": action(filled('{"a":', BLOCK)),
    "as deep as Python reads": action("[" * 900 + "]" * 900),
    "an integer of 4,300 digits": action("[" + ENTRY % f'{{"turn_up_deg":{"9" * 4300}}}' + "]"),
    "an integer of 19,000 digits": action("[" + ENTRY % f'{{"turn_up_deg":{"9" * 19_000}}}' + "]"),
    "a view of 4,000 digits": action("[" + (ENTRY % STEP).replace("0", "9" * 4_000, 1) + "]"),
    "a fraction of 19,000 digits": action("[" + ENTRY % f'{{"turn_up_deg":0.{"1" * 19_000}}}' + "]"),
    "an exponent of 19,000 digits": action("[" + ENTRY % f'{{"turn_up_deg":1e{"9" * 19_000}}}' + "]"),
    "an unclosed string": action('["' + "a" * (BLOCK - 10)),
    "a string of escapes": action('["' + filled("\\ud800", BLOCK - 10) + '"]'),
    "spaces": action(" " * BLOCK),
}
"""Action blocks at and beyond the bound."""
TAGS: dict[str, str] = {
    f"{tag} again and again": filled(tag, MAX_REPLY_CHARS)
    for tag in ("<answer>", "<action>", "<think>", "</answer>", "<answer><action><think>", "<answer", "<",
                "<answer></answer>", "<think><answer></answer></think>")
} | {
    "opened a thousand times, closed once": "<answer>" * 1000 + "B</answer>",
    "nested a thousand times": "<answer>" * 1000 + "B" + "</answer>" * 1000,
    "a long thought": f"<think>{filled('turn right ', MAX_REPLY_CHARS - 40)}</think><answer>B</answer>",
    "a long text outside": filled("so ", MAX_REPLY_CHARS - 40) + answer("B"),
    "no block": "\x00" * MAX_REPLY_CHARS,
}  # fmt: skip
"""Replies of tags at the bound."""
ANSWERS: dict[str, str] = {
    f"{pattern!r} again and again": answer(filled(pattern, MAX_ANSWER_CHARS))
    for pattern in ("9", "1 ", "1x", "-", "1e99 ", ".1", "1.", "[", "[]", "(", "()", "( ", "(a", "move_right:1,", ",",
                    ":", "second image ", "2nd", "A", "\u200b", "\ud800", "٣", "İ")
} | {
    "digits that end in a letter": answer("9" * (MAX_ANSWER_CHARS - 1) + "x"),
    "a letter after spaces": answer("(" + " " * (MAX_ANSWER_CHARS - 2) + "B"),
    "numbers for a box": answer("[" + ",".join(["9" * 490] * 4) + "]"),
}  # fmt: skip
"""Answers at the bound."""
MILLION: dict[str, str] = {
    "an answer of a million digits": answer("9" * 10**6),
    "an answer of a million spaces": answer(" " * 10**6),
    "a million unclosed tags": "<answer>" * 10**6,
    "an action block of a million brackets": action("[" * 10**6),
}
"""Beyond every bound."""
GIANTS = BLOCKS | TAGS | ANSWERS | MILLION


def milliseconds(work: Callable[[], object], times: int = 5) -> float:
    """Least CPU time of one call."""
    found = []
    for _ in range(times):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return 1000 * min(found)


def main() -> None:
    cost: dict[str, float] = {}
    for name, text in GIANTS.items():
        forms = list(GOLD) if name in ANSWERS else ["number"]
        modes = ("actions", "language", "direct") if name in TAGS else ("actions",)
        for form in forms:
            for mode in modes:
                target = target_of(form, mode)
                spent = milliseconds(lambda text=text, target=target: score_reply(text, target, RewardConfig()))
                cost[f"{name} ({form}, {mode})"] = spent
    for name, spent in sorted(cost.items(), key=lambda item: item[1]):
        print(f"{spent:8.2f} ms  {name}")


if __name__ == "__main__":
    main()
