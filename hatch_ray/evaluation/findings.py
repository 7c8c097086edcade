"""What a run's evaluations say together: paired differences, the blind control, and each claim with its figure.

A claim holds where its 95 % interval does (`intervals.verdict`): a mean on the right side of a line shows nothing.
RUN/eval/comparison.json holds them; the terminal table and the report only show what stands there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from hatch_ray.evaluation.control import blind_control
from hatch_ray.evaluation.heldout import SWAPPED, compare, read_rows, read_summary
from hatch_ray.evaluation.intervals import Bootstrap, Interval, Verdict, verdict
from hatch_ray.run_folder import STAGES, RunFolder, write_atomic

FINAL = "final"
MODELS = ("base", *STAGES, FINAL)
"""Names of evaluations of a model, in the order in which the recipe makes them."""
CONTROLS = (FINAL + SWAPPED, "constant", "still")

LABELS = {
    "base": "base",
    "pasta": "after PaStA",
    "qa_sft": "QA SFT, direct",
    "cold_start": "after cold start",
    "grpo": "after GRPO",
    FINAL: "final",
    FINAL + SWAPPED: "final, swapped",
    "constant": "best constant",
    "still": "do not move",
}

VALID_FORMAT = 0.95


def interval_text(interval: Mapping[str, Any] | None, digits: int = 3) -> str:
    """ "0.512 (0.480 to 0.541)"."""
    if interval is None:
        return "-"
    return f"{interval['value']:.{digits}f} ({interval['low']:.{digits}f} to {interval['high']:.{digits}f})"


def patch_retrieval(run: RunFolder) -> dict[str, Any] | None:
    """RUN/eval/patch_retrieval.json (PaStA's accuracy before and after), or None when it was not measured."""
    path = run.evaluation("patch_retrieval")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def retrieval_gain(found: dict[str, Any], bootstrap: int, seed: int) -> Interval | None:
    """By how much PaStA raised the share of patches that are matched: paired, pair by pair of views, by scene.

    None where RUN/eval/patch_retrieval.json has no figures by pair, as in runs of older versions.
    """
    if (pairs := found.get("by_pair")) is None:
        return None
    more = np.array(pairs["after"], dtype=np.float64) - np.array(pairs["before"], dtype=np.float64)
    return Bootstrap(pairs["scene"], bootstrap, seed).ratio(more, np.array(pairs["judged"], dtype=np.float64))


def _claim(
    text: str, measured: str | None = None, interval: Any = None, holds: Verdict | None = None
) -> dict[str, Any]:
    return {"claim": text, "measured": measured or "not measured", "interval": interval, "holds": holds}


def _retrieval_claim(run: RunFolder, bootstrap: int, seed: int) -> dict[str, Any]:
    text = "PaStA raises patch retrieval"
    found = patch_retrieval(run)
    if found is None:
        return _claim(text)
    measured = " -> ".join(interval_text({"value": found[when]["mean"], **found[when]}) for when in ("before", "after"))
    gain = retrieval_gain(found, bootstrap, seed)
    if gain is None:
        return _claim(text, measured)
    return _claim(text, f"{interval_text(gain)}; {measured}", gain, verdict(gain))


def _format_claim(run: RunFolder) -> dict[str, Any]:
    text = f"Cold start brings valid format to {100 * VALID_FORMAT:g} % or more"
    summary = read_summary(run, "cold_start")
    if summary is None:
        return _claim(text)
    found = summary["overall"]["format"]
    return _claim(text, interval_text(found), found, verdict(found, VALID_FORMAT, above=False))


def _grpo_claims(run: RunFolder, change: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A gain may be one of guessing: what the model earns blind stands beside it."""
    swapped = read_summary(run, FINAL + SWAPPED)
    claims = []
    for text, name, above in (
        ("GRPO raises the mean action reward", "action", True),
        ("GRPO does not lower the answer reward", "answer", False),
    ):
        found = change["overall"][name] if change is not None else None
        if found is None:
            claims.append(_claim(text))
            continue
        blind = interval_text(swapped["overall"][name]) if swapped is not None else "not measured"
        measured = f"{interval_text(found)}; final with another question's images: {blind}"
        claims.append(_claim(text, measured, found, verdict(found, above=above)))
    return claims


def _sight_claims(blind: dict[str, Any] | None) -> list[dict[str, Any]]:
    actions = "Its actions look: another question's images cost at least half of the margin over the best constant plan"
    answers = "Its answers look: another question's images cost answer reward"
    if blind is None:
        return [_claim(actions), _claim(answers)]
    fall = blind["answer_fall"]
    looks = _claim(answers, f"they cost {interval_text(fall)}", fall, blind["answers_look"])
    if blind["actions_look"] is None:
        return [_claim(actions), looks]
    measured = (
        f"they cost {interval_text(blind['action_fall'])}, margin {interval_text(blind['action_margin'])}; "
        f"cost less half of the margin: {interval_text(blind['action_surplus'])}"
    )
    return [_claim(actions, measured, blind["action_surplus"], blind["actions_look"]), looks]


def write_findings(run: RunFolder, bootstrap: int, seed: int) -> dict[str, Any]:
    """Compare the evaluations that the run has and write RUN/eval/comparison.json; what is missing is null there.

    models   names of the evaluations present, in the recipe's order, then the controls; labels: their names in words.
    grpo     differences of "final" against "cold_start" (`heldout.compare`); null unless GRPO ran.
    overall  differences of "final" against "base".
    blind    `control.blind_control` of "final".
    claims   [{"claim", "measured", "interval", "holds": "yes" | "no" | "not shown" | null}]; null: not measured.
    """
    present = [name for name in MODELS + CONTROLS if run.evaluation(name).exists()]
    rows = {name: read_rows(run, name) for name in present}

    def change(before: str, after: str) -> dict[str, Any] | None:
        return compare(rows[before], rows[after], bootstrap, seed) if before in rows and after in rows else None

    grpo = change("cold_start", FINAL) if run.progress().get("grpo", {}).get("done") else None
    needed = (FINAL, FINAL + SWAPPED, "constant")
    blind = None
    if all(name in rows for name in needed):
        blind = blind_control(rows[FINAL], rows[FINAL + SWAPPED], rows["constant"], bootstrap, seed)
    found = {
        "models": present,
        "labels": LABELS,
        "grpo": grpo,
        "overall": change("base", FINAL),
        "blind": blind,
        "claims": [
            _retrieval_claim(run, bootstrap, seed),
            _format_claim(run),
            *_grpo_claims(run, grpo),
            *_sight_claims(blind),
        ],
    }
    write_atomic(run.evaluation("comparison"), json.dumps(found, indent=2, allow_nan=False))
    return found
