"""Scheduling by staleness, the order of the data, groups and shards: pure logic, no Ray started."""

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.experience.batch import MAX_REFUSED, Asked, Batch, Schedule
from actors.experience.queues import ExperienceBoard, WeightsBoard, make_shards
from actors.reward.verifier import make_groups
from actors.runtime.messages import Reply, Request, Rollout, Shard, WeightsHandle
from hatch_ray.data.store import SampleOrder


def test_synchronous_schedule_takes_turns():
    schedule = Schedule(0, 3, 0)
    assert schedule.start(0) == 0
    assert schedule.admit(0, [0])
    assert schedule.needed_version == 1
    with pytest.raises(ValueError, match="needs version 1"):
        schedule.start(0)
    assert schedule.start(1) == 1


@given(staleness=st.integers(0, 4), speeds=st.lists(st.booleans(), min_size=60, max_size=60))
def test_nothing_older_than_allowed_is_ever_trained(staleness, speeds):
    """Engines and learner advance in any order: every step is trained once, none too old, and none waits for ever."""
    steps = 8
    schedule, version, queue, trained = Schedule(0, steps, staleness), 0, [], []
    for engines_first in [*speeds, *[True, False] * steps]:
        if engines_first and not schedule.done and version >= schedule.needed_version:
            step = schedule.start(version)
            assert schedule.admit(step, [version])
            queue.append((step, version))
        elif queue:
            step, sampled = queue.pop(0)
            assert step == version
            assert version - sampled <= staleness
            trained.append(step)
            version += 1
    assert trained == list(range(steps))
    assert schedule.done


def test_a_batch_that_comes_back_too_old_is_sampled_again():
    schedule = Schedule(4, 10, 1)
    assert schedule.start(4) == 4
    assert not schedule.admit(4, [4, 2])
    assert schedule.start(4) == 4
    assert schedule.admit(4, [4, 3])


def test_batches_that_keep_coming_back_too_old_end_the_run():
    schedule = Schedule(4, 10, 1)
    for _ in range(MAX_REFUSED - 1):
        assert not schedule.admit(schedule.start(4), [2])
    with pytest.raises(RuntimeError, match=r"3 batches in a row were older than grpo.max_staleness allows"):
        schedule.admit(schedule.start(4), [2])


def test_resumed_schedule_starts_at_its_step():
    schedule = Schedule(5, 6, 2)
    assert schedule.needed_version == 3
    assert schedule.start(5) == 5
    assert schedule.done
    with pytest.raises(ValueError, match="every step"):
        schedule.start(6)


@pytest.mark.parametrize("wrong", [(3, 2, 0), (-1, 2, 0), (0, 2, -1)])
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(ValueError, match="impossible"):
        Schedule(*wrong)


@given(count=st.integers(1, 20), per_step=st.integers(1, 7), seed=st.integers(0, 99))
def test_every_epoch_asks_every_sample_once(count, per_step, seed):
    order = SampleOrder(count, per_step, seed)
    asked = [index for step in range(2 * count) for index in order.indices(step)]
    for epoch in range(2 * per_step):
        assert sorted(asked[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_order_does_not_depend_on_where_one_starts():
    assert SampleOrder(10, 4, 1).indices(7) == SampleOrder(10, 4, 1).indices(7)
    assert SampleOrder(100, 4, 1).indices(0) != SampleOrder(100, 4, 2).indices(0)


def make_rollout(lengths, version=0):
    replies = tuple(Reply(tuple(range(n)), "x", np.zeros(n, np.float32), True) for n in lengths)
    return Rollout(replies, version, 10)


def make_score(total, action=0.5):
    terms = {"answer": 0.25, "format": 1.0, "action": action, "total": total}
    return {"terms": terms, "measures": {"d_t": None, "d_r": None}}


def test_groups_keep_their_own_scores_and_advantages():
    requests = [Request("a", "", ()), Request("b", "", ())]
    totals = [0.0, 1.0, 2.0, 2.0]
    groups = make_groups(requests, [make_rollout([3, 4]), make_rollout([5, 6])], [make_score(t) for t in totals])
    assert [g.request.id for g in groups] == ["a", "b"]
    assert [g.zero_variance for g in groups] == [False, True]
    assert groups[0].advantages[0] == -groups[0].advantages[1] < 0
    assert (groups[1].advantages == 0).all()
    assert groups[1].rewards.tolist() == [2.0, 2.0]


def test_shards_cover_all_groups_evenly_and_know_the_tokens_of_all():
    lengths = [[10, 10], [1, 1], [9, 9], [2, 2]]
    requests = [Request(str(i), "", ()) for i in range(4)]
    groups = make_groups(requests, [make_rollout(n) for n in lengths], [make_score(0.0)] * 8)
    shards = make_shards(3, groups, 2)
    assert sorted(g.request.id for s in shards for g in s.groups) == ["0", "1", "2", "3"]
    assert {len(s.groups) for s in shards} == {2}
    assert {s.global_tokens for s in shards} == {44}
    assert {s.step for s in shards} == {3} and {s.reward for s in shards} == {0.0}
    assert sorted(len(s.groups) for s in make_shards(0, groups, 3)) == [1, 1, 2]
    with pytest.raises(RuntimeError, match="step 0 has 4 groups left for 5 learner workers"):
        make_shards(0, groups, 5)


def test_metrics_leave_out_terms_that_do_not_apply():
    scores = [make_score(0.0), make_score(1.0, action=None)]
    groups = make_groups([Request("a", "", ())], [make_rollout([2, 4], version=4)], scores)
    metrics = Batch(5, (Asked(0, 0, None, groups[0], tuple(scores)),), {"seconds_generate": 2.0}).metrics()
    assert metrics["reward_total"] == 0.5
    assert metrics["reward_action"] == 0.5
    assert metrics["reply_tokens"] == 3
    assert metrics["staleness"] == 1
    assert metrics["seconds_generate"] == 2.0 and metrics["groups"] == 1
    assert "d_t" not in metrics


def test_board_gives_each_rank_its_shard_and_lets_waiting_workers_go():
    async def play():
        board = ExperienceBoard()
        waiting = asyncio.create_task(board.take(0, 1))
        await asyncio.sleep(0)
        assert not waiting.done()
        await board.put([Shard(0, (), 1, 1, 0.0), Shard(0, (), 2, 1, 0.0)])
        assert (await waiting).global_tokens == 2
        assert (await board.take(0, 0)).global_tokens == 1
        await board.report(0, {"loss": 1.0})
        assert await board.reports() == {0: {"loss": 1.0}}
        assert await board.reports() == {}
        late = asyncio.create_task(board.take(1, 0))
        await asyncio.sleep(0)
        await board.stop()
        assert await late is None

    asyncio.run(play())


def test_weights_board_holds_the_newest_version_in_order():
    async def play():
        board = WeightsBoard(4)
        assert await board.wait_for(3) == (4, None)
        waiting = asyncio.create_task(board.wait_for(5))
        await asyncio.sleep(0)
        assert not waiting.done()
        handle = WeightsHandle(5, None)
        await board.publish(handle)
        assert await waiting == (5, handle)
        with pytest.raises(ValueError, match="version 7 published after 5"):
            await board.publish(WeightsHandle(7, None))

    asyncio.run(play())
