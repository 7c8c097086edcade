"""Groups without variance give their places to other prompts: which, how often, and the same after any end."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.experience.batch import Asked, Batch, newest, without_variance
from actors.experience.collect import Collector
from actors.experience.queues import make_shards
from actors.reward.verifier import Rewarded, make_groups
from actors.rollout.prompts import Questions
from actors.runtime.actor_pool import Failed
from actors.runtime.messages import Reply, Request, Rollout, Sampling
from actors.runtime.recovery import Recovery
from actors.runtime.spans import Spans
from actors.stages.grpo_record import Record
from examples.brighter import EasyFirst
from hatch_ray.config import ConfigError, make_config
from hatch_ray.data.store import Shuffled
from hatch_ray.run_folder import RunFolder, read_jsonl
from hatch_ray.sample import Sample
from hatch_ray.systems import system_of
from hatch_ray.systems.matching.curriculum import Curriculum
from hatch_ray.systems.matching.questions import LEVELS, SPREADS
from tests.systems.test_matching_curriculum import config_of, question

SAMPLES = [question(*kind) for kind in product(range(30), LEVELS, SPREADS)]
"""Ten of a kind, so that a step of four leaves others."""
STEPS, PER_STEP, SAVE_EVERY = 6, 4, 2
POISON = ("rooms1-L1-sparse", "rooms4-L1-sparse")
"""Samples that kill whoever samples them; the first step asks one at first, the other when it draws again."""


def score(total: float) -> dict[str, Any]:
    return {"terms": {"match": total, "total": total}, "measures": {}, "reasons": [], "plans": [], "answer": None}


def asked(place: int, draw: int, *totals: float) -> Asked:
    """A group whose replies earned this."""
    request, replies = (
        Request(f"{place}.{draw}", "", ()),
        [Reply((1,), "x", np.zeros(1, np.float32), True)] * len(totals),
    )
    scores = [score(total) for total in totals]
    (group,) = make_groups([request], [Rollout(tuple(replies), 3, 1)], scores)
    return Asked(place, draw, Sample(request.id, "s", "t", "number", "?", "1", ()), group, tuple(scores))


FIRST = (asked(0, 0, 0.5, 0.5), asked(1, 0, 0.0, 1.0), asked(3, 0, 1.0, 1.0))


def test_places_without_variance_are_drawn_again_until_their_newest_group_has_some() -> None:
    assert without_variance(FIRST) == [0, 3]
    second = (*FIRST, asked(0, 1, 0.0, 0.0), asked(3, 1, 0.2, 0.4))
    assert without_variance(second) == [0] and without_variance((*second, asked(0, 2, 0.1, 0.9))) == []
    assert [(one.place, one.draw) for one in newest(second).values()] == [(0, 1), (1, 0), (3, 1)]


def test_of_each_place_one_group_is_trained_and_all_are_written_down_and_count_as_rewards() -> None:
    batch = Batch(3, (*FIRST, asked(0, 1, 0.0, 0.0), asked(3, 1, 0.2, 0.4)), {"redrawn_groups": 2.0})
    rows = batch.ledger_rows(PER_STEP)
    assert [(row["place"], row.get("draw", 0), row["status"]) for row in rows] == [
        (12, 0, "redrawn"), (13, 0, "trained"), (15, 0, "redrawn"), (12, 1, "trained"), (15, 1, "trained")
    ]  # fmt: skip
    found, rewards = batch.metrics(), [0.5, 0.5, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.2, 0.4]
    assert found["reward_total"] == pytest.approx(np.mean(rewards)) and len(batch.sample_rows()) == 10
    assert (found["groups"], found["zero_variance_groups"], found["redrawn_groups"]) == (3, 1, 2)
    (shard,) = make_shards(3, batch.groups, 1, [one.group for one in batch.asked])
    assert shard.reward == pytest.approx(np.mean(rewards)) and shard.global_replies == 6


class DiedError(Exception):
    """The driver's end."""


class Played:
    """Engines and reward actors of which only the rewards matter: most groups have no variance. `deaths`: the calls,
    counted over all starts of the run, that its driver does not survive.
    """

    def __init__(self, deaths: Sequence[int]) -> None:
        self.calls, self.deaths = 0, deaths
        self.pool = SimpleNamespace(work=deque())

    def _call(self) -> None:
        self.calls += 1
        if self.calls in self.deaths:
            raise DiedError

    def forget(self) -> None:
        self._call()

    def try_generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout | Failed]:
        self._call()
        replies = (Reply((1,), "x", np.zeros(1, np.float32), True),) * sampling.n
        return [Failed("killed three") if one.id in POISON else Rollout(replies, 0, 1) for one in requests]

    def reward(
        self, samples: Sequence[Sample], requests: Sequence[Request], rollouts: Mapping[int, Rollout]
    ) -> dict[int, Rewarded]:
        self._call()
        found = {}
        for place, rollout in rollouts.items():
            rng, count = np.random.default_rng(requests[place].seed), len(rollout.replies)
            totals = (
                rng.choice([0.0, 0.9, 1.0], count) if rng.random() < 0.4 else [float(rng.choice([0.0, 1.0]))] * count
            )
            scores = tuple(score(float(total)) for total in totals)
            found[place] = Rewarded(make_groups([requests[place]], [rollout], scores)[0], scores)
        return found


def run_to_its_end(folder: Path, redraw: int, deaths: Sequence[int]) -> tuple[Curriculum, Record, int]:
    """A run that starts again from its last checkpoint whenever it dies; its sampler, record and number of calls."""
    config = config_of()
    config = config.model_copy(update={"grpo": config.grpo.model_copy(update={"redraw": redraw, "group_size": 4})})
    run, played, saved = RunFolder(folder), Played(deaths), 0
    request = lambda sample, seed: Request(sample.id, "", (), seed)  # noqa: E731
    maker: Any = SimpleNamespace(request=request, processed=1, unique=1)
    while True:
        sampler, spans = Curriculum(config, SAMPLES), Spans(run.spans, saved)
        record = Record(config, run, system_of(config), sampler, saved, None)
        recovery = Recovery(run, "grpo", config.recovery, lambda line: None)
        collector = Collector(config, Questions(config, maker, sampler, spans), record.ledger, recovery, spans)
        collector.engines = collector.rewards = played  # type: ignore[assignment]
        try:
            for step in range(saved, STEPS):
                record.sampled(collector.collect(step), {})
                saved = (step + 1) // SAVE_EVERY * SAVE_EVERY
            return sampler, record, played.calls
        except DiedError:
            continue


@settings(max_examples=12, deadline=None)
@given(redraw=st.integers(0, 3), deaths=st.sets(st.integers(1, 70), max_size=5))
def test_a_step_that_ends_anywhere_draws_the_same_again(
    tmp_path_factory: pytest.TempPathFactory, redraw: int, deaths: set[int]
) -> None:
    """Ledger, replies and curriculum are those of a run that was left alone; a curriculum is told of all groups once,
    in order; no step asks a sample twice, and at most `redraw` times more.
    """
    folders = [tmp_path_factory.mktemp("run") for _ in range(2)]
    (alone, record, _), (sampler, again, _) = (
        run_to_its_end(folder, redraw, end) for folder, end in zip(folders, ((), sorted(deaths)), strict=True)
    )
    rows = again.ledger.rows
    assert sorted(rows, key=str) == sorted(record.ledger.rows, key=str)
    for name in ("samples/grpo.jsonl", "experience.jsonl"):
        ours, theirs = ([_untimed(row) for row in read_jsonl(folder / name)] for folder in folders)
        assert ours == theirs
    assert sampler.state == alone.state and again.ledger.problems(STEPS, PER_STEP) == []
    told = Curriculum(config_of(), SAMPLES)
    for step, groups in again.ledger.told().items():
        told.observe(step, groups)
        ids, draws = [row["id"] for row in groups], [row.get("draw", 0) for row in groups]
        assert len(set(ids)) == len(ids) and draws == sorted(draws) and max(draws) <= redraw
    assert told.state == sampler.state
    late = [row for row in rows if row.get("draw") and row["status"] != "set aside"]
    assert len(late) == sum(row["status"] == "redrawn" for row in rows) and bool(late) == bool(redraw)
    aside = [(row["id"], row.get("draw", 0)) for row in rows if row["status"] == "set aside" and row["step"] == 0]
    assert aside == [(POISON[0], 0), (POISON[1], 1)][: 1 + bool(redraw)]


def _untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("seconds")}


def plain(count: int, **grpo: Any) -> Shuffled:
    samples = [Sample(f"s{number}", "room", "", "number", "?", "1", ()) for number in range(count)]
    return Shuffled(make_config({"grpo": {"prompts_per_step": 4} | grpo}), samples)


@given(step=st.integers(0, 50), draw=st.integers(1, 4), count=st.integers(0, 4), known=st.integers(5, 12))
def test_others_are_others_and_the_order_of_the_epochs_stays(step: int, draw: int, count: int, known: int) -> None:
    sampler, before = plain(known, redraw=1), plain(known)
    asked_ids = {one.id for one in sampler.samples(step)}
    found = [one.id for one in sampler.others(step, draw, asked_ids, count)]
    assert len(found) == min(count, known - len(asked_ids)) == len(set(found) - asked_ids)
    assert found == [one.id for one in plain(known, redraw=1).others(step, draw, asked_ids, count)]
    assert [one.id for one in sampler.samples(step + 1)] == [one.id for one in before.samples(step + 1)]


def test_what_cannot_draw_again_is_refused_in_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"grpo.redraw=2 draws samples .* a step asks 4 and there are 4: set grpo.red"
    ):
        plain(4, redraw=2)
    config = make_config({"system": "examples.brighter:Brighter", "grpo": {"redraw": 1}})
    with pytest.raises(
        ConfigError, match=r"grpo.redraw=1: EasyFirst, .* no method `others` \(docs/your-own-system.md\)"
    ):
        Questions(config, None, EasyFirst(config, []), None)  # type: ignore[arg-type]
