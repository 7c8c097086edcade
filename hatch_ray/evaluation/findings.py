"""What a run's evaluations say together: paired differences, the blind control, and each claim with its figure.

RUN/eval/comparison.json holds them; the terminal table and the report only show what stands there.
"""

from __future__ import annotations

import json
from typing import Any

from hatch_ray.evaluation.control import blind_control
from hatch_ray.evaluation.heldout import SWAPPED, compare, read_rows, read_summary
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

RETRIEVAL_GAIN = 0.15
VALID_FORMAT = 0.95
ACTION_GAIN = 0.05


def interval_text(interval: dict[str, Any] | None, digits: int = 3) -> str:
    """ "0.512 (0.480 to 0.541)"."""
    if interval is None:
        return "-"
    return f"{interval['value']:.{digits}f} ({interval['low']:.{digits}f} to {interval['high']:.{digits}f})"


def patch_retrieval(run: RunFolder) -> dict[str, Any] | None:
    """RUN/eval/patch_retrieval.json (PaStA's accuracy before and after), or None when it was not measured."""
    path = run.evaluation("patch_retrieval")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _claim(text: str, measured: str | None, holds: bool | None) -> dict[str, Any]:
    return {"claim": text, "measured": measured or "not measured", "holds": holds}


def _retrieval_claim(run: RunFolder) -> dict[str, Any]:
    text = f"PaStA raises patch retrieval accuracy by {100 * RETRIEVAL_GAIN:g} points or more"
    found = patch_retrieval(run)
    if found is None:
        return _claim(text, None, None)
    before, after = found["before"]["mean"], found["after"]["mean"]
    measured = f"{before:.3f} -> {after:.3f} ({100 * (after - before):+.1f} points)"
    return _claim(text, measured, after - before >= RETRIEVAL_GAIN)


def _format_claim(run: RunFolder) -> dict[str, Any]:
    text = f"Cold start brings valid format to {100 * VALID_FORMAT:g} % or more"
    summary = read_summary(run, "cold_start")
    if summary is None:
        return _claim(text, None, None)
    found = summary["overall"]["format"]
    return _claim(text, interval_text(found), found["value"] >= VALID_FORMAT)


def _grpo_claims(change: dict[str, Any] | None) -> list[dict[str, Any]]:
    action_text = f"GRPO raises the mean action reward by {ACTION_GAIN} or more, interval above 0"
    answer_text = "GRPO does not lower the answer reward"
    if change is None:
        return [_claim(action_text, None, None), _claim(answer_text, None, None)]
    action, answer = change["overall"]["action"], change["overall"]["answer"]
    raised = action is not None and action["value"] >= ACTION_GAIN and action["low"] > 0
    return [
        _claim(action_text, interval_text(action), raised),
        _claim(answer_text, interval_text(answer), answer["value"] >= 0),
    ]


def _sight_claim(blind: dict[str, Any] | None) -> dict[str, Any]:
    text = "It sees: swapped images cost half of the action margin over the best constant plan, and answer reward"
    if blind is None or blind["sees"] is None:
        return _claim(text, None, None)
    measured = (
        f"action falls {interval_text(blind['action_fall'])}, margin {interval_text(blind['action_margin'])}; "
        f"answer falls {interval_text(blind['answer_fall'])}"
    )
    return _claim(text, measured, blind["sees"])


def write_findings(run: RunFolder, bootstrap: int, seed: int) -> dict[str, Any]:
    """Compare the evaluations that the run has and write RUN/eval/comparison.json; what is missing is null there.

    models   names of the evaluations present, in the recipe's order, then the controls; labels: their names in words.
    grpo     differences of "final" against "cold_start" (`heldout.compare`); null unless GRPO ran.
    overall  differences of "final" against "base".
    blind    `control.blind_control` of "final".
    claims   [{"claim", "measured", "holds": true | false | null}].
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
        "claims": [_retrieval_claim(run), _format_claim(run), *_grpo_claims(grpo), _sight_claim(blind)],
    }
    write_atomic(run.evaluation("comparison"), json.dumps(found, indent=2, allow_nan=False))
    return found
