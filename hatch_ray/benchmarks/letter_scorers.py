"""Multiple choice as the benchmarks read it, each by the rules of its own repository:

mindcube   mll-lab-nu/MindCube 6d8fd9ac, src/evaluation/core/extractors.py (lmms-eval carries the same)
mmsi       OpenRobotLab/MMSI-Bench 4e28bfff, MMSIBenchDataset.extract_single_choice_with_word_boundary (lmms-eval's copy
           also looks into braces)
cvbench    nyu-visionx/CV-Bench compares letters; how a letter is found is this project's. So do BLINK, 3DSRBench, SAT
omni       qizekun/OmniSpatial, its mode "re": the last "Answer: X", else A (lmms-eval carries the same)

Each looks at the text inside the answer block if there is one: MindCube's first rule would otherwise take a letter
from the reasons before it.
"""

from __future__ import annotations

import re

from hatch_ray.benchmarks.item import tagged_answer
from hatch_ray.benchmarks.spar_scorers import fixed_choice
from hatch_ray.protocol.values import LETTER

MINDCUBE_SETTINGS = ("around", "rotation", "translation", "among")
"""In the order in which an id is searched for them. Translation is no part of the overall accuracy."""

_AFTER_TAG = (r"[Mm]y answer is ([A-E])", r"[Tt]he answer is ([A-E])", r"\b([A-E])\b")
_PHRASES = (
    r"(?:^|\n)(?:Answer: )?([A-E])(?:$|\s)", r"[*\"]([A-E])[*\"]", r"\bAnswer:?\s*([A-E])\b",
    r"[Mm]y answer is ([A-E])", r"answer is ([A-E])",
)  # fmt: skip

MMSI_GROUPS = {"Positional Relationship": "Pos", "Attribute": "Att", "Motion": "Mot", "MSR": "MSR"}
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212"), "-")


def mindcube_letter(text: str) -> str | None:
    """MindCube's official extraction, the first rule that finds a letter: the last "X." with X in A-E anywhere; a
    section after a tag <Answer> (with capital A); phrases, each by its last place (a letter that begins a line first);
    the lowest line with a lone letter.

    Rules of the source that want a point after the letter can find nothing after the first one, and are left out.
    """
    if dotted := re.findall(r"([A-E])\.", text):
        return str(dotted[-1])
    section = re.search(r"<Answer>(.*?)(?:<|$)", text, re.DOTALL)
    for patterns, part in ((_AFTER_TAG, section.group(1) if section else ""), (_PHRASES, text)):
        for pattern in patterns:
            if found := re.findall(pattern, part):
                return str(found[-1])
    for line in reversed(text.split("\n")):
        if lone := re.search(r"\b([A-E])\b", line):
            return lone.group(1)
    return None


def mindcube_setting(row_id: str) -> str:
    """The setting that an id names, the first of MINDCUBE_SETTINGS that it contains; "other" when none."""
    return next((name for name in MINDCUBE_SETTINGS if name in row_id.lower()), "other")


def mindcube(completion: str, gold: str, _: str = "") -> float:
    """1 when the extracted letter is the gold one."""
    return float(mindcube_letter(tagged_answer(completion)) == gold.strip())


def mmsi_letter(text: str) -> str | None:
    """MMSI-Bench's extraction: into double back-quotes, then single ones, where they are; then the first lone capital
    A-D that no word follows.
    """
    for pattern in (r"``([^`]*)``", r"`([^`]*)`"):
        if inner := re.search(pattern, text):
            text = inner.group(1)
    found = re.search(r"\b[A-D]\b(?!\s[a-zA-Z])", text)
    return found.group() if found else None


def mmsi_type(name: str) -> str:
    """A question type with plain dashes (the data has en dashes) and single spaces."""
    return " ".join(name.translate(_DASHES).split())


def mmsi_group(question_type: str) -> str | None:
    """The paper's column of a question type, or None when it has none."""
    name = mmsi_type(question_type)
    return next((group for start, group in MMSI_GROUPS.items() if name.startswith(start)), None)


def mmsi(completion: str, gold: str, _: str = "") -> float:
    """1 when the extracted letter is the gold one. The script's optional extraction by a language model is left out."""
    found = mmsi_letter(tagged_answer(completion))
    return float(found is not None and found.lower() == gold.strip().lower())


def cvbench(completion: str, gold: str, _: str = "") -> float:
    """1 when the letters agree: "(A)", "A", "A." and "(a) text" are one answer."""
    return fixed_choice(tagged_answer(completion), gold)


def omnispatial_letter(completion: str) -> str:
    """The letter in the answer block; else OmniSpatial's own rule: the last "Answer: X" in all, and A where none is."""
    if found := LETTER.match(tagged_answer(completion)):
        return found.group(1).upper()
    said = re.findall(r"Answer\s*:\s*([A-D])\b", completion, re.IGNORECASE)
    return str(said[-1]).upper() if said else "A"


def omnispatial(completion: str, gold: str, _: str = "") -> float:
    """1 when the letter that was read is the gold one."""
    return float(omnispatial_letter(completion) == gold)
