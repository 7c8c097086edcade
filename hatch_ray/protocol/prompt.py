"""What the model is told. Training, evaluation and the service all build their prompts here.

The paper prints no prompt; the texts below are ours (reference: papers/hatch.md, appendix B). A template has a name,
the config stores it, and a published model must be asked with the template it was trained with.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from hatch_ray.sample import Atom, Sample

Mode = Literal["actions", "language", "direct"]
"""A reply's blocks: camera motion as JSON actions (eq. 6) and answer, the same in plain words (the paper's Table 3
compares them; only actions can be verified) and answer, or the answer alone (QA SFT, single images)."""

Template = Literal["full-v1", "compact-v1"]

SPECIAL_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>")

ANSWER_LINE: dict[str, str] = {
    "letter": "The answer is one letter.",
    "number": "The answer is one number.",
    "box": "The answer is a box [x1,y1,x2,y2] in 0-1000.",
    "camera_motion": "The answer is (x,y),d with x, y in 0-1000 and d in metres.",
    "view_change": "The answer is move_right:m,move_up:m,move_forward:m,rotate_up:deg,rotate_right:deg.",
    "text": "The answer is a short text.",
}

FULL_ACTIONS = """\
First write how the camera moves between the images, then answer.
Reply with exactly one <action> block and then exactly one <answer> block, and nothing else.
The <action> block holds a JSON list with one entry for each pair of images: {pairs}. An entry is \
{{"from": i, "to": j, "action": [...]}} and its list takes the camera of image i to that of image j with these steps: \
turn_left_deg, turn_right_deg, turn_up_deg, turn_down_deg (degrees), move_forward_m, move_up_m, move_down_m (metres). \
Turn towards the place of the target camera, move there, then turn to its viewing direction. \
An example of a step: {{"turn_right_deg": 30}}.
"""
FULL_DIRECT = "Reply with exactly one <answer> block and nothing else.\n"
FULL_LANGUAGE = """\
First say in plain words how the camera moves between the images, then answer.
Reply with exactly one <think> block and then exactly one <answer> block, and nothing else.
The <think> block says for each pair of images, {pairs}, how to get from the first camera to the second.
"""
INSTRUCTIONS: dict[tuple[Template, Mode], str] = {
    ("full-v1", "actions"): FULL_ACTIONS,
    ("full-v1", "language"): FULL_LANGUAGE,
    ("full-v1", "direct"): FULL_DIRECT,
    ("compact-v1", "actions"): "Actions {pairs}, then answer. ",
    ("compact-v1", "language"): "Think {pairs}, then answer. ",
    ("compact-v1", "direct"): "Answer. ",
}


def reply_mode(mode: Mode, n_views: int) -> Mode:
    """The mode of one reply: a single view is always asked directly, there is no camera motion to tell (paper, 4.4)."""
    return mode if n_views > 1 else "direct"


def check_text(text: str) -> None:
    """Refuse a text that carries chat-template tokens: they would change the roles or the number of images.

    Raises ValueError naming the token.
    """
    found = SPECIAL_TOKEN.search(text)
    if found:
        raise ValueError(f"the question contains the reserved token {found.group()!r}; remove it")


def build_prompt(
    question: str,
    n_views: int,
    answer_form: str,
    mode: Mode = "actions",
    template: Template = "full-v1",
) -> list[dict[str, Any]]:
    """Chat messages with one {"type": "image"} placeholder a view, in order, for `apply_chat_template`.

    Raises ValueError when the question carries template tokens or there is no view.
    """
    if n_views < 1:
        raise ValueError("a prompt needs at least one image")
    check_text(question)
    content: list[dict[str, Any]] = []
    for index in range(n_views):
        content += [{"type": "text", "text": f"Image {index}: "}, {"type": "image"}, {"type": "text", "text": "\n"}]
    pairs = ", ".join(f"{i}-{j}" for i in range(n_views) for j in range(i + 1, n_views))
    instruction = INSTRUCTIONS[template, reply_mode(mode, n_views)].format(pairs=pairs)
    text = f"{question}\n{instruction}{ANSWER_LINE[answer_form]}"
    content.append({"type": "text", "text": text})
    return [{"role": "user", "content": content}]


def sample_prompt(sample: Sample, mode: Mode, template: Template) -> list[dict[str, Any]]:
    """`build_prompt` for a sample."""
    return build_prompt(sample.question, len(sample.views), sample.answer_form, mode, template)


def format_atom(atom: Atom) -> dict[str, float | int]:
    """Degrees as integers where they are whole, metres with one decimal at least."""
    name, value = atom
    return {name: int(value) if name.endswith("_deg") and float(value).is_integer() else float(value)}


def format_plans(plans: dict[tuple[int, int], tuple[Atom, ...]]) -> str:
    """The JSON inside the action block, compact, pairs in order."""
    entries = [{"from": i, "to": j, "action": [format_atom(atom) for atom in plans[i, j]]} for i, j in sorted(plans)]
    return json.dumps(entries, separators=(",", ":"))


def plans_in_words(plans: dict[tuple[int, int], tuple[Atom, ...]]) -> str:
    """The same motion as `format_plans` in sentences: "Image 0 to image 1: turn right 30 degrees, move up 0.3 m." """
    return " ".join(
        f"Image {i} to image {j}: {', '.join(map(_atom_in_words, plans[i, j])) or 'stay'}." for i, j in sorted(plans)
    )


def _atom_in_words(atom: Atom) -> str:
    ((name, value),) = format_atom(atom).items()
    *verb, unit = name.split("_")
    return f"{' '.join(verb)} {value} {'degrees' if unit == 'deg' else unit}"


def gold_reply(sample: Sample, mode: Mode) -> str:
    """The teacher's reply (eq. 6) in the form that `protocol.response` accepts."""
    answer = f"<answer>{sample.answer}</answer>"
    mode = reply_mode(mode, len(sample.views))
    if mode == "direct":
        return answer
    plans = {(plan.source, plan.target): plan.atoms for plan in sample.plans}
    if sorted(plans) != sample.pairs:
        raise ValueError(f"sample {sample.id} has gold actions for {sorted(plans)}, needs {sample.pairs}")
    if mode == "language":
        return f"<think>{plans_in_words(plans)}</think>{answer}"
    return f"<action>{format_plans(plans)}</action>{answer}"
