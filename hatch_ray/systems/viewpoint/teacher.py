"""Thoughts by a teacher model that is given the right answers (arXiv 2511.01618, section 3.2 and appendix C).

A reply is kept where its form is right, its answer is the gold one, and the thought does not tell that the answer was
given. Other samples keep their thought from geometry.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hatch_ray.data.rows import checked_rows
from hatch_ray.protocol.response import parse_response
from hatch_ray.rewards.terms import score_answer
from hatch_ray.run_folder import write_atomic
from hatch_ray.sample import Sample
from hatch_ray.systems.viewpoint.questions import SIDES
from hatch_ray.systems.viewpoint.thoughts import tens

REPEATED = re.compile(r"-thought-(\d+)$")
"""What `dataset` appends to the id of a sample that comes again with another thought."""
FACTS = (
    "For you alone, so that your thought is right: seen from the camera, its place moved to the {went}{around}; it "
    "turned to the {turned} by about {degrees} degrees."
)
TASK = (
    "The right answer is {answer}. Write the thought of one who sees the two photos and nothing else: what each photo "
    "shows, from which side, what has shifted between them, hence how the camera moved and turned, then the answer. "
    "Never say that anything was told to you."
)
LEAK = re.compile(
    r"\b(?:given|provided|stated|known) (?:answers?|facts?|information)\b"
    r"|\b(?:answer|facts?|information|direction|angle|degrees) (?:was|were|is|are) (?:given|told|provided|stated)\b"
    r"|\b(?:we|i|you) (?:are|am|was|were|have been) (?:given|told)\b|\bas (?:given|told|stated|provided)\b"
    r"|\bground.?truth\b|\b(?:according to|based on|from) the (?:facts?|answer|information|hint|note)s?\b|\bhints?\b"
    r"|\bfor you alone\b|\btold (?:me|us)\b",
    re.IGNORECASE,
)
SHORTEST = 40
"""Characters of a thought."""


def asked_of_teacher(sample: Sample) -> Sample:
    """The sample with the right answer in its question; how to reply is said by the system's own prompt."""
    parts = [sample.question]
    meta = sample.meta
    if meta.get("lateral") is not None and meta.get("yaw_deg") is not None:
        around = meta.get("dphi_deg")
        parts.append(
            FACTS.format(
                went=SIDES[meta["lateral"] > 0],
                around=f", about {tens(around)} degrees around the object" if around is not None else "",
                turned=SIDES[meta["yaw_deg"] > 0],
                degrees=tens(meta["yaw_deg"]),
            )
        )
    parts.append(TASK.format(answer=sample.answer))
    return replace(sample, question="\n".join(parts))


def kept_thought(reply: str, n_views: int, answer: str, form: str) -> tuple[str, str]:
    """(thought, "") of a teacher's reply, or ("", why it is not kept). answer, form: the gold one."""
    response = parse_response(reply, n_views, "language")
    if not response.format_ok:
        return "", f"format:{response.problems[0]}"
    if score_answer(response.answer, answer, form)[0] < 1:
        return "", "other_answer"
    thought = reply.partition("<think>")[2].partition("</think>")[0].strip()
    if len(thought) < SHORTEST:
        return "", "too_short"
    return ("", "leak") if LEAK.search(thought) else (thought, "")


def pool_of(samples: Sequence[Sample]) -> dict[str, Sample]:
    """The different samples that have a thought, by id; those that come again are one. Raises ValueError: none has."""
    pool: dict[str, Sample] = {}
    for sample in samples:
        if "thought" in sample.meta:
            pool.setdefault(REPEATED.sub("", sample.id), sample)
    if not pool:
        raise ValueError("no sample of the dataset has a thought; name a train dataset of views, with think_share > 0")
    return pool


def write_thoughts(dataset: Path, replies: Mapping[str, Sequence[str]], teacher: str) -> dict[str, Any]:
    """Put the thoughts that are kept of replies (by the ids of `pool_of`) into a dataset; repeats take them in turn.

    Returns {"teacher", "asked", "replies", "kept", "samples", "refused"}, which the summary has too.
    """
    rows = checked_rows(dataset / "index.jsonl")
    refused: Counter[str] = Counter()
    thoughts: dict[str, list[str]] = {}
    gold = {row["id"]: row for row in rows}
    for name, texts in replies.items():
        row = gold.get(name) or gold[f"{name}-thought-0"]
        for text in texts:
            thought, reason = kept_thought(text, len(row["views"]), row["answer"], row["answer_form"])
            refused.update([reason] if reason else [])
            thoughts.setdefault(name, []).extend([thought] if thought else [])
    changed = 0
    for row in rows:
        found = thoughts.get(REPEATED.sub("", row["id"]), [])
        if found and "thought" in row["meta"]:
            repeat = REPEATED.search(row["id"])
            row["meta"] |= {"thought": found[int(repeat.group(1) if repeat else 0) % len(found)], "thought_by": teacher}
            changed += 1
    told = {
        "teacher": teacher, "asked": len(replies), "replies": sum(map(len, replies.values())),
        "kept": sum(map(len, thoughts.values())), "samples": changed, "refused": dict(refused.most_common()),
    }  # fmt: skip
    summary = json.loads((dataset / "summary.json").read_text(encoding="utf-8"))
    write_atomic(dataset / "index.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    write_atomic(dataset / "summary.json", json.dumps(summary | {"thoughts": told}, indent=2, allow_nan=False))
    return told
