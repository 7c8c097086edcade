"""Every claim by its interval: yes, no, not shown, not measured, with intervals that can be told by hand.

Two samples of two scenes are drawn singly, so a mean of two values a < b falls on a, the middle or b with chances 1/4,
1/2, 1/4: its 95 % interval is a to b.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from hatch_ray.config import make_config, save_config
from hatch_ray.evaluation.findings import write_findings
from hatch_ray.evaluation.heldout import write_evaluation
from hatch_ray.evaluation.intervals import Bootstrap, Interval, all_hold, verdict
from hatch_ray.evaluation.kept import Measure, got_worse, kept_table, warnings
from hatch_ray.evaluation.tables import print_evaluation
from hatch_ray.report.run_report import write_report
from hatch_ray.run_folder import RunFolder, write_atomic
from hatch_ray.systems import system_of

DRAWS = 400
SYSTEM = system_of(make_config({}))
PASTA, KEPT, FORMAT, ACTION, ANSWER, ACTIONS_LOOK, ANSWERS_LOOK = range(7)
Pair = tuple[float | None, float | None]


@pytest.mark.parametrize(
    ("low", "high", "above", "at_least"),
    [
        (0.01, 0.03, "yes", "yes"),
        (0.0, 0.03, "not shown", "yes"),
        (-0.014, 0.031, "not shown", "not shown"),
        (-0.03, 0.0, "no", "not shown"),
        (-0.03, -0.01, "no", "no"),
        (0.0, 0.0, "no", "yes"),
    ],
)
def test_an_interval_against_a_line(low, high, above, at_least):
    for line in (0.0, 0.95):
        interval = Interval(value=line + (low + high) / 2, low=line + low, high=line + high, n=9)
        assert (verdict(interval, line), verdict(interval, line, above=False)) == (above, at_least)


def test_a_claim_of_two_parts_needs_both_and_fails_with_one():
    assert all_hold("yes", "yes") == "yes"
    assert all_hold("yes", "not shown") == "not shown"
    assert all_hold("not shown", "no") == all_hold("no", "yes") == "no"


def test_the_ratio_weighs_each_pair_by_what_was_judged():
    found = Bootstrap(["a", "b"], DRAWS, 0).ratio(np.array([1.0, 6.0]), np.array([10.0, 30.0]))
    assert found == {"value": 7 / 40, "low": 0.1, "high": 0.2, "n": 40}


def rows(actions: Pair, answers: Pair, formats: Pair = (1.0, 1.0)) -> list[dict[str, Any]]:
    return [
        {
            "id": f"q{place}", "scene": f"room{place}", "task": "view_change_infer", "reasons": [],
            "terms": {"answer": answers[place], "format": formats[place], "action": actions[place], "total": 1.0},
            "measures": {"d_t": None, "d_r": None},
        }
        for place in range(2)
    ]  # fmt: skip


def judged(run: RunFolder, **models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims on these evaluations, after GRPO."""
    for name, replies in models.items():
        write_evaluation(run, name, replies, DRAWS, 0)
    run.set_progress("grpo", step=1, done=True)
    return write_findings(SYSTEM, run, DRAWS, 0)["claims"]


def ends(claim: dict[str, Any]) -> tuple[float, float]:
    return claim["interval"]["low"], claim["interval"]["high"]


@pytest.mark.parametrize(
    ("change", "raises", "keeps"),
    [
        ((0.1, 0.2), "yes", "yes"),
        ((-0.1, 0.2), "not shown", "not shown"),
        ((-0.2, -0.1), "no", "no"),
        ((0.0, 0.2), "not shown", "yes"),
        ((-0.2, 0.0), "no", "not shown"),
    ],
)
def test_what_grpo_changes(tmp_path, change, raises, keeps):
    final = (0.5 + change[0], 0.5 + change[1])
    claims = judged(
        RunFolder(tmp_path), cold_start=rows((0.5, 0.5), (0.5, 0.5)), final=rows(final, final),
        final_swapped=rows((0.25, 0.25), (0.75, 0.75)), constant=rows((0.0, 0.0), (0.0, 0.0)),
    )  # fmt: skip
    assert ends(claims[ACTION]) == ends(claims[ANSWER]) == pytest.approx(change)
    assert (claims[ACTION]["holds"], claims[ANSWER]["holds"]) == (raises, keeps)
    assert claims[ACTION]["claim"] == "GRPO raises the mean action reward"
    # What it earns blind stands beside the gain.
    assert "another question's images: 0.250 (0.250 to 0.250)" in claims[ACTION]["measured"]
    assert "another question's images: 0.750 (0.750 to 0.750)" in claims[ANSWER]["measured"]


@pytest.mark.parametrize(
    ("formats", "holds"), [((0.95, 1.0), "yes"), ((0.9, 1.0), "not shown"), ((0.9, 0.95), "not shown"),
                           ((0.8, 0.94), "no")]
)  # fmt: skip
def test_the_format_after_cold_start(tmp_path, formats, holds):
    claim = judged(RunFolder(tmp_path), cold_start=rows((0.5, 0.5), (0.5, 0.5), formats))[FORMAT]
    assert (ends(claim), claim["holds"]) == (formats, holds)


@pytest.mark.parametrize(
    ("swapped", "constant", "surplus", "holds"),
    [
        ((0.2, 0.3), (0.4, 0.4), (0.3, 0.4), "yes"),
        ((0.7, 0.7), (0.4, 0.4), (-0.1, -0.1), "no"),
        ((0.2, 0.7), (0.4, 0.4), (-0.1, 0.4), "not shown"),
        ((0.6, 0.6), (0.4, 0.4), (0.0, 0.0), "yes"),
        ((0.6, 0.6), (0.9, 0.9), (0.25, 0.25), "no"),
        ((0.2, 0.2), (0.7, 0.9), (0.55, 0.65), "not shown"),
    ],
    ids=["looks", "falls by less", "crosses", "just half", "no margin", "margin crosses"],
)
@pytest.mark.parametrize("term", ["action", "answer"])
def test_whether_its_actions_and_its_answers_look(tmp_path, term, swapped, constant, surplus, holds):
    """Each its own claim: answers are measured where no actions were due, too."""
    claims = judged(RunFolder(tmp_path), **{
        name: rows(*((values, (0.5, 0.5)) if term == "action" else ((None, None), values)))
        for name, values in {"final": (0.8, 0.8), "final_swapped": swapped, "constant": constant}.items()
    })  # fmt: skip
    place, other = (ACTIONS_LOOK, ANSWERS_LOOK) if term == "action" else (ANSWERS_LOOK, ACTIONS_LOOK)
    assert ends(claims[place]) == pytest.approx(surplus)
    assert claims[place]["holds"] == holds
    assert claims[other]["holds"] == ("no" if term == "action" else None)
    assert claims[ACTION]["holds"] is claims[ANSWER]["holds"] is None, "there is no cold start to compare with"


@pytest.mark.parametrize(
    ("before", "after", "gain", "holds"),
    [((4, 9), (5, 15), (0.1, 0.2), "yes"), ((4, 9), (3, 12), (-0.1, 0.1), "not shown"),
     ((4, 9), (3, 3), (-0.2, -0.1), "no"), ((4, 9), (4, 12), (0.0, 0.1), "not shown")],
)  # fmt: skip
def test_whether_pasta_raises_retrieval(tmp_path, before, after, gain, holds):
    """10 patches of one pair and 30 of another are judged."""
    run = RunFolder(tmp_path)
    found = {
        when: {"mean": sum(right) / 40, "low": 0.1, "high": 0.6}
        for when, right in (("before", before), ("after", after))
    }
    pairs = {"scene": ["a", "b"], "judged": [10, 30], "before": before, "after": after}
    write_atomic(run.evaluation("patch_retrieval"), json.dumps(found | {"n": 40, "by_pair": pairs}))
    claim = judged(run)[PASTA]
    assert (claim["claim"], claim["holds"]) == ("PaStA raises patch retrieval", holds)
    assert ends(claim) == pytest.approx(gain, abs=1e-6)
    # Without figures by pair nothing is claimed; what was measured is still said.
    write_atomic(run.evaluation("patch_retrieval"), json.dumps(found | {"n": 40}))
    claim = judged(run)[PASTA]
    assert claim["holds"] is claim["interval"] is None
    assert claim["measured"].startswith("0.325 (0.100 to 0.600) -> ")


@pytest.mark.parametrize(
    ("angles", "rights", "holds", "worse"),
    [((1, 3), (0, 1), "no", ["heading"]), ((-3, -1), (-0.2, -0.1), "no", ["match"]), ((-3, 0), (0, 1), "yes", []),
     ((-1, 3), (0, 1), "not shown", []), ((1, 3), (-0.2, -0.1), "no", ["heading", "match"])],
)  # fmt: skip
def test_whether_pasta_keeps_what_was_known(tmp_path, angles, rights, holds, worse):
    """An angle's error that grows is a loss, and so is a share that falls; both are paired, question by question."""
    run = RunFolder(tmp_path)
    before = {"deg": np.array([10.0, 90.0]), "right": np.array([0.3, 0.9])}
    names = {"deg": ("heading", angles), "right": ("match", rights)}
    measures = [
        Measure(name, unit, ["a", "b"], before[unit], before[unit] + np.array(changes, float))
        for unit, (name, changes) in names.items()
    ]
    table = kept_table(measures, DRAWS, 0)
    assert [table[0]["gain"][end] for end in ("low", "high")] == [-angles[1], -angles[0]]
    assert [row["name"] for row in table if got_worse(row)] == worse
    said = warnings(table, "lower pasta.lr (0.1)")
    assert len(said) == len(worse) and all("lower pasta.lr (0.1)" in line for line in said)
    if angles == (1, 3):
        assert said[0].startswith("heading 50.0 deg -> 52.0 deg got worse by 2.0 deg (1.0 deg to 3.0 deg); ")
    write_atomic(run.evaluation("kept"), json.dumps({"stage": "pasta", "kept": table, "warnings": said}))
    claim = judged(run)[KEPT]
    assert (claim["claim"], claim["holds"]) == ("PaStA keeps what the model could: nothing gets worse", holds)
    assert claim["measured"].count("(worse)") == len(worse)
    assert claim["interval"] == table[1 if rights[0] < 0 else 0]["gain"], "the one that lies lowest"


def test_terminal_and_report_show_the_words(tmp_path):
    run = RunFolder(tmp_path)
    save_config(make_config({"run_dir": str(tmp_path)}), run.config_path)
    judged(
        run, cold_start=rows((0.5, 0.5), (0.5, 0.5)), final=rows((0.6, 0.7), (0.4, 0.6)),
        final_swapped=rows((0.6, 0.7), (0.4, 0.6)), constant=rows((0.0, 0.0), (0.0, 0.0)),
    )  # fmt: skip
    stored = json.loads(run.evaluation("comparison").read_text())["claims"]
    assert [claim["holds"] for claim in stored] == [None, None, "yes", "yes", "not shown", "no", "no"]
    console = Console(width=100, record=True)
    print_evaluation(SYSTEM, run, console)
    text = " ".join(console.export_text().split())
    for wanted in (
        "not measured PaStA raises", "yes Cold start brings", "yes GRPO raises the mean action reward: 0.150 (0.100 to",
        "not shown GRPO does not lower", "NO Its actions look", "NO Its answers look",
    ):  # fmt: skip
        assert wanted in text
    # The cards need whole replies, which these rows are not.
    for path in run.evaluation("").parent.glob("*.jsonl"):
        path.unlink()
    page = write_report(run).read_text()
    for word, kind in (("yes", "yes"), ("no", "no"), ("not shown", "open"), ("not measured", "open")):
        assert f'<span class="verdict {kind}">{word}</span>' in page
