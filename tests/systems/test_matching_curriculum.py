"""The curriculum of wide-baseline matching: steps of one, never two ways at once, and the same from any ledger."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.stages.grpo_record import Record
from hatch_ray.config import ConfigError, make_config, save_config
from hatch_ray.data.store import Shuffled
from hatch_ray.report.run_report import write_report
from hatch_ray.report.status import status_text
from hatch_ray.run_folder import RunFolder, read_jsonl
from hatch_ray.sample import Sample, View
from hatch_ray.systems import system_of
from hatch_ray.systems.matching.curriculum import Curriculum, make_sampler, ranks
from hatch_ray.systems.matching.ladder import STAGES, Cell, Ladder, State, advance, climb
from hatch_ray.systems.matching.questions import LEVELS, SPREADS
from hatch_ray.systems.matching.settings import CurriculumConfig, MatchingConfig

PAPER = CurriculumConfig()
START = State()
SHORT = CurriculumConfig(bins=3, window=3, promote_after=2, demote_after=2)
values = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
rules = st.builds(
    CurriculumConfig, bins=st.integers(1, 4), window=st.integers(1, 6), promote_after=st.integers(1, 4),
    demote_after=st.integers(1, 4), master=st.sampled_from([0.5, 0.8]), promote=st.sampled_from([0.3, 0.7]),
)  # fmt: skip


def asked(state: State) -> list[Cell]:
    """One question of each kind that is asked."""
    return [
        Cell(state.bin, level, state.spreads[level].rung) for level in range(3) if STAGES[state.stage.rung][level] > 0
    ]


def states(steps: Sequence[Sequence[float]], rule: CurriculumConfig, start: State = START) -> list[State]:
    """The states through which a learner goes that earns this of the (at most three) kinds of question of each step."""
    found = [start]
    for earned in steps:
        found.append(advance(found[-1], list(zip(asked(found[-1]), earned, strict=False)), rule))
    return found


def always(match: float, steps: int, rule: CurriculumConfig, start: State = START) -> State:
    return states([[match] * 3] * steps, rule, start)[-1]


@given(st.lists(st.lists(values, min_size=3, max_size=3), max_size=120), rules)
def test_no_bin_and_no_level_is_skipped(steps: list[list[float]], rule: CurriculumConfig) -> None:
    for before, after in pairwise(states(steps, rule)):
        assert after.bin - before.bin in (0, 1) and after.bin < rule.bins and after.mastered >= before.mastered
        assert after.mastered == before.mastered or before.bin == rule.bins - 1
        for one, two in zip((before.stage, *before.spreads), (after.stage, *after.spreads), strict=True):
            assert abs(two.rung - one.rung) <= 1 and 0 <= two.rung <= 2
            assert two.rung == one.rung or two == Ladder(two.rung), "a new rung knows nothing of the old one"
        assert len(after.window) <= rule.window and len(after.stage.recent) <= rule.window


@given(st.lists(values, max_size=60), rules)
def test_a_ladder_never_goes_up_and_down_at_once(seen: list[float], rule: CurriculumConfig) -> None:
    ladder = Ladder(1)
    for value in seen:
        after = climb(ladder, value, 2, rule)
        assert not (after.above and after.below)
        if after.rung > ladder.rung:
            assert value >= rule.demote and ladder.above == rule.promote_after - 1
        if after.rung < ladder.rung:
            assert value < rule.demote and ladder.below == rule.demote_after - 1
        ladder = after


def test_who_is_always_right_masters_every_bin_and_ends_with_all_kinds() -> None:
    end = always(1.0, 20 * 10, PAPER)
    assert end.mastered and end.bin == 9 and end.stage.rung == 2 and [one.rung for one in end.spreads] == [2, 2, 2]
    assert not always(1.0, 20 * 10 - 1, PAPER).mastered
    assert always(1.0, 19, PAPER).bin == 0 and always(1.0, 20, PAPER).bin == 1


@given(st.lists(st.lists(st.floats(0.2, 0.6), min_size=3, max_size=3), max_size=200))
@settings(max_examples=40)
def test_who_guesses_stays(steps: list[list[float]]) -> None:
    end = states(steps, PAPER)[-1]
    assert (end.bin, end.stage.rung, [one.rung for one in end.spreads]) == (0, 0, [0, 0, 0]) and not end.mastered


def test_a_mean_at_the_line_is_not_above_it() -> None:
    assert always(0.8, 100, PAPER).bin == 0 and always(0.5, 100, CurriculumConfig(promote=0.5)).stage.rung == 0
    assert always(0.2, 100, PAPER, State(stage=Ladder(2))).stage.rung == 2


def test_who_forgets_goes_down_one_by_one_and_keeps_the_bin() -> None:
    top = State(bin=4, stage=Ladder(2), spreads=(Ladder(2),) * 3)
    path = states([[0.0] * 3] * 60, PAPER, top)
    assert [path[n].stage.rung for n in (9, 10, 19, 20, 60)] == [2, 1, 1, 0, 0]
    assert path[-1].bin == 4 and path[-1].spreads[0].rung == 0
    assert path[10].spreads[2].rung == 1 == path[-1].spreads[2].rung, "L3 is not asked any more, and stays"


def test_what_older_kinds_of_question_earned_counts_for_nothing() -> None:
    state = State(bin=1, stage=Ladder(1))
    stale = [Cell(0, 1, 0), Cell(2, 1, 0), Cell(1, 0, 0), Cell(1, 2, 0), Cell(1, 1, 1)]
    assert advance(state, [(cell, 1.0) for cell in stale], SHORT) == state == advance(state, [], SHORT)
    mixed = advance(state, [(cell, 1.0) for cell in stale] + [(Cell(1, 1, 0), 0.0)], SHORT)
    assert mixed.window == (0.0,) and mixed.stage.recent == (0.0,) and mixed.spreads[0] == Ladder()


def question(pair: int, level: str, spread: str, source: str = "rooms") -> Sample:
    meta = {"omega": 0.9 - 0.01 * pair, "pair": f"pair{pair}", "level": level, "spread": spread, "source": source}
    name = f"{source}{pair}-{level}-{spread}"
    return Sample(name, f"room{pair}", "", "matching", "?", "{}", (View(Path("a.png")),) * 2, meta=meta)


SAMPLES = [question(*kind) for kind in product(range(12), LEVELS, SPREADS)]


def config_of(**curriculum: Any) -> MatchingConfig:
    short = {"bins": 3, "window": 3, "promote_after": 2, "demote_after": 2} | curriculum
    config = make_config({"system": "matching", "curriculum": short, "grpo": {"prompts_per_step": 4}})
    assert isinstance(config, MatchingConfig)
    return config


def ledger_of(sampler: Curriculum, steps: int, match: Callable[[Sample, int], float]) -> list[list[dict[str, Any]]]:
    """The rows of a run whose learner earns this."""
    ledger = []
    for step in range(steps):
        rows = [{"id": one.id, "version": step, "terms": {"match": match(one, step)}} for one in sampler.samples(step)]
        sampler.observe(step, rows)
        ledger.append(rows)
    return ledger


@settings(max_examples=25)
@given(st.integers(0, 40), st.integers(0, 10**6))
def test_the_state_is_a_fold_of_the_ledger(cut: int, seed: int) -> None:
    """A run that is resumed anywhere has the state and asks the questions of one that never stopped."""
    rng = np.random.default_rng(seed)
    whole = Curriculum(config_of(), SAMPLES)
    ledger = ledger_of(whole, 40, lambda one, step: float(rng.choice([0.0, 0.9, 1.0])))
    resumed = Curriculum(config_of(), SAMPLES)
    for step, rows in enumerate(ledger[:cut]):
        resumed.observe(step, rows)
    for step, rows in enumerate(ledger[cut:], start=cut):
        assert [one.id for one in resumed.samples(step)] == [row["id"] for row in rows]
        resumed.observe(step, rows)
    assert resumed.state == whole.state
    assert [one.id for one in resumed.samples(40)] == [one.id for one in whole.samples(40)]


def test_only_what_the_state_asks_is_drawn_and_each_question_once_a_step() -> None:
    sampler = Curriculum(config_of(), SAMPLES)
    seen = set()
    for step in range(30):
        chosen = sampler.samples(step)
        assert len({one.id for one in chosen}) == 4 and all(sampler.state.asks(sampler.cell[one.id]) for one in chosen)
        seen |= {sampler.cell[one.id] for one in chosen}
        sampler.observe(step, [{"id": one.id, "version": 0, "terms": {"match": 1.0}} for one in chosen])
    assert (
        sampler.state.mastered
        and {cell.bin for cell in seen} == {0, 1, 2}
        and {cell.level for cell in seen} == {0, 1, 2}
    )


def test_a_learner_that_learns_climbs() -> None:
    """It gets better at what it is asked, and starts lower at everything harder."""
    skill: dict[Cell, float] = {}
    sampler = Curriculum(config_of(), SAMPLES)

    def match(one: Sample, step: int) -> float:
        cell = sampler.cell[one.id]
        skill[cell] = min(1.0, skill.get(cell, 0.3) + 0.02)
        return skill[cell]

    ledger_of(sampler, 20, match)
    assert (sampler.state.bin, sampler.state.stage.rung) != (0, 0) and not sampler.state.mastered
    ledger_of(sampler, 600, match)
    assert sampler.state.mastered and sampler.state.stage.rung == 2


def test_the_other_orders() -> None:
    uniform, easy, hard = (make_sampler(config_of(order=order), SAMPLES) for order in ("uniform", "easy", "hard"))
    assert all(isinstance(one, Shuffled) for one in (uniform, easy, hard)) and len(uniform.known) == len(SAMPLES)
    assert {one.scene for one in easy.known} == {"room0", "room1", "room2"}
    assert {one.scene for one in hard.known} == {"room9", "room10", "room11"}
    assert isinstance(make_sampler(config_of(), SAMPLES), Curriculum)


def test_sources_are_ranked_apart() -> None:
    others = [question(pair, "L1", "sparse", "scans") for pair in range(100, 104)]
    rank = ranks([*SAMPLES, *others])
    assert [rank[one.id] for one in others] == [0, 0.25, 0.5, 0.75] and rank[SAMPLES[-1].id] == 11 / 12


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"no question of bin 1 of 13, level L1, sparse: raise data.samples or lower"):
        Curriculum(config_of(bins=13), [question(0, "L2", "dense")])
    with pytest.raises(ConfigError, match=r"no question of bin 1 of 3, level L3, dense"):
        Curriculum(config_of(), SAMPLES[:8] + SAMPLES[9:27])
    with pytest.raises(ConfigError, match=r"sample s has no meta.source: a curriculum needs"):
        ranks([Sample("s", "s", "", "matching", "?", "{}", ())])
    with pytest.raises(ConfigError, match=r"curriculum.demote=0.7 must be below curriculum.promote=0.7"):
        config_of(demote=0.7)


def test_where_it_stands_is_in_the_metrics_and_in_the_report(tmp_path: Path) -> None:
    """A learner that gets better at what it is asked: every step of the ladder is a row of metrics, and drawn."""
    run, config = RunFolder(tmp_path / "run"), config_of(bins=3, window=5)
    save_config(config, run.config_path)
    sampler, skill = Curriculum(config, SAMPLES), dict[Cell, float]()
    record = Record(config, run, system_of(config), sampler, 0, None)
    for step in range(200):
        run.log("grpo", step + 1, {"reward_match": 0.5} | record.standing())
        asked = sampler.samples(step)
        for one in asked:
            skill[sampler.cell[one.id]] = min(1.0, skill.get(sampler.cell[one.id], 0.3) + 0.02)
        sampler.observe(step, [{"id": o.id, "terms": {"match": skill[sampler.cell[o.id]]}} for o in asked])
    words = record.asks()
    assert words["bin"] == "all" and words["level"] == "mix" and words["L1"] in SPREADS
    assert "asks: bin all, level mix, L1" in status_text(STATUS | {"asks": words, "time": time.time()}, None)
    rows = read_jsonl(run.metrics_path)
    assert rows[0]["asks_bin"] == 0 and rows[-1]["asks_bin"] == 3 and 0 < rows[-1]["asks_level_mean"] <= 1
    page = write_report(run).read_text()
    picture = re.search(r'<svg[^>]*aria-label="what was asked by step".*?</svg>', page, re.DOTALL)
    assert picture is not None
    drawn = ET.fromstring(picture.group())
    assert len(drawn.findall("{*}polyline")) == 7 and "moderate" in picture.group() and "2 of 3" in picture.group()
    uniform = system_of(config_of(order="uniform"))
    assert uniform.ladders() == {} == Record(config, run, uniform, sampler, 0, None).standing()


STATUS = {"pid": 1, "host": "h", "stage": "grpo", "step": 1, "steps": 9}
