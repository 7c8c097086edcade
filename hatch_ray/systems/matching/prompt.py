"""What is asked: the parts of the paper's prompt (its figure 4) in fewer words, and a compact form for small models."""

from __future__ import annotations

from hatch_ray.protocol.prompt import Template, check_text

SHOWN = """\
Both photos show one scene. Numbered circles mark places in it. A place that is marked in the first photo may be \
marked in the second too, or not: then the answer is "none".
"""
THINK = """\
First think inside <thinking> and </thinking>: describe each marked place by what it is and by what lies around it, \
not by where it is in the photo; compare the viewpoints (turned, moved, nearer, something in the way); then match \
mark by mark, from what is certain to what is not.
"""
ANSWER = """\
Give the answer inside <answer> and </answer>, as JSON: the keys are all numbers of the first photo, each value is a \
number of the second photo or "none". An example:
<answer>
```json
{"1": "2", "2": "none", "3": "1", "4": "3"}
```
</answer>"""
COMPACT_THINK = "Think, then answer."
COMPACT_ANSWER = "Answer."


def question_text(first: int, second: int) -> str:
    """What is asked of photos with so many marks."""
    return f"Match marks 1-{first} of the first photo to marks 1-{second} of the second."


def build_text(question: str, thinking: bool, template: Template) -> str:
    """The text after the two photos. Raises ValueError when the question carries template tokens."""
    check_text(question)
    if template == "compact-v1":
        return f"{question} {COMPACT_THINK if thinking else COMPACT_ANSWER}"
    return f"{SHOWN}{question}\n{THINK if thinking else ''}{ANSWER}"
