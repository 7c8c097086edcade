"""Numbers that are not finite: a bad step changes nothing, is kept whole, and is every worker's."""

from __future__ import annotations

import copy
import math
import multiprocessing
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.experience.queues import make_shards
from actors.learner.learner import Learner
from actors.reward.verifier import make_groups
from actors.runtime.messages import Reply, Request, Rollout
from hatch_ray.config import make_config
from hatch_ray.config_sections import RewardConfig
from hatch_ray.environment import prepare_environment
from hatch_ray.learning.workers import Workers
from hatch_ray.model.base import load_processor, part_checksum
from hatch_ray.model.prompt_tokens import process_image, tokenize_prompt
from hatch_ray.protocol.prompt import build_prompt
from hatch_ray.rewards.score import check_scores
from hatch_ray.rewards.terms import RewardTarget, reward_weights, score_reply
from tests.support.pictures import photo
from tools.kept_batches import read_bad_batch
from tools.replay import load_learner, replay_batch

CPU = torch.device("cpu")


class LocalLearner(Learner):
    """A learner whose images come with the request, so that no object store is needed."""

    def _image(self, image):
        return image


def make_settings(tiny_model, run, **grpo):
    return make_config({
        "run_dir": str(run),
        "model": {"base": str(tiny_model), "template": "compact-v1", "max_pixels": 112 * 112, "max_length": 512},
        "grpo": {"group_size": 4, "prompts_per_step": 2, "max_new_tokens": 16, "token_budget": 150, "lr": 1e-3,
                 "beta": 0.0, "bad_steps": 2} | grpo,
    })  # fmt: skip


def make_batch(tiny_model, seed=0):
    """Two groups of four made-up replies, sampled by nobody in particular (version -1: agreement is not asked)."""
    processor = load_processor(tiny_model, 112 * 112)
    generator = torch.Generator().manual_seed(seed)
    requests, rollouts = [], []
    for index in range(2):
        images = [process_image(processor, photo(10 * seed + 2 * index + n), f"{seed}-{index}-{n}") for n in range(2)]
        messages = build_prompt("How far?", 2, "number", "actions", "compact-v1")
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        replies = []
        for length in (3, 7, 5, 2 + 4 * index):
            ids = torch.randint(0, 1000, (length,), generator=generator).tolist()
            replies.append(Reply(tuple(ids), f"é {length}", np.full(length, -7.3, np.float32), True))
        requests.append(Request(f"q{index}", text, tuple(images)))
        rollouts.append(Rollout(tuple(replies), -1, len(tokenize_prompt(processor, text, images).token_ids)))
    return make_groups(requests, rollouts, [{"terms": {"total": t}} for t in (0.0, 1.0, 3.0, 2.0, 1.0, 0.0, 0.5, 2.0)])


def break_logprob(groups, value, group=1, reply=2):
    """The groups with one of vLLM's log-probabilities set to `value`."""
    groups, rollout = list(groups), groups[group].rollout
    replies = list(rollout.replies)
    logprobs = replies[reply].logprobs.copy()
    logprobs[1] = value
    replies[reply] = replace(replies[reply], logprobs=logprobs)
    groups[group] = replace(groups[group], rollout=replace(rollout, replies=tuple(replies)))
    return groups


def break_image(groups):
    request = groups[0].request
    image = request.images[1]
    pixels = image.pixels.clone()
    pixels[3, 5] = math.nan
    images = (request.images[0], replace(image, pixels=pixels, key="broken"))
    return [replace(groups[0], request=replace(request, images=images)), *groups[1:]]


def shard(groups, step=0):
    return make_shards(step, groups, 1)[0]


def all_of(learner):
    """Weights and optimizer state, to be compared bit for bit."""
    state = learner.optimizer.state_dict()["state"]
    moments = {f"{k}.{name}": torch.as_tensor(v) for k, one in state.items() for name, v in one.items()}
    return copy.deepcopy({**learner.model.state_dict(), **moments})


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def groups(tiny_model):
    return make_batch(tiny_model)


FAULTS = {
    "a log-probability that is nan": lambda groups: break_logprob(groups, math.nan),
    "a log-probability that is -inf, though loss and gradient are finite": lambda g: break_logprob(g, -math.inf),
    "an image with a nan": break_image,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_step_changes_nothing_is_kept_and_the_run_goes_on(tiny_model, groups, tmp_path, fault):
    config = make_settings(tiny_model, tmp_path / "run", schedule="cosine", warmup_steps=2)
    learner = LocalLearner(config, tiny_model, 10)
    first = learner.update(shard(groups))
    assert first["skipped"] == 0.0
    before, rate = all_of(learner), learner.scheduler.get_last_lr()
    metrics = learner.update(shard(FAULTS[fault](groups), 1))
    assert equal(all_of(learner), before)
    assert metrics["skipped"] == metrics["batch_kept"] == 1.0
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["tokens"] == first["tokens"]
    assert learner.scheduler.get_last_lr() > rate  # warm-up goes on: the step counts as taken
    kept, weights = read_bad_batch(tmp_path / "run" / "bad_batches" / "step-000002-rank0")
    assert equal(weights, {name: p for name, p in before.items() if name in weights})
    assert weights.keys() == {name for name, _ in learner.model.named_parameters()}
    assert (kept.step, kept.rank, kept.world, kept.update, kept.config) == (2, 0, 1, 0, config)
    assert "bad" not in str(learner.update(shard(groups, 2)))
    assert not equal(all_of(learner), before)
    assert learner.bad_in_a_row == 0


def test_after_a_skipped_step_all_goes_on_as_if_it_had_not_been(tiny_model, groups, tmp_path):
    """The same good steps with and without a bad one between them: the same weights, bit for bit."""
    config = make_settings(tiny_model, tmp_path, beta=0.01)
    bad = break_logprob(groups, math.nan)
    ends = []
    for steps in ((groups, groups), (bad, groups, bad, groups)):
        learner = LocalLearner(config, tiny_model, 10)
        for number, step in enumerate(steps):
            learner.update(shard(step, number))
        ends.append(all_of(learner))
    assert equal(*ends)


def test_a_gradient_that_is_not_finite_in_a_later_update(tiny_model, groups, tmp_path):
    """The loss is finite. The finite updates before it stay; it and those after it are left out; pi_old is kept."""
    config = make_settings(tiny_model, tmp_path, updates_per_step=3, token_budget=9999)
    learner, other = (LocalLearner(config, tiny_model, 10) for _ in range(2))
    passes = []

    def overflow(gradient):
        passes.append(1)
        return gradient * math.inf if len(passes) == 2 else gradient

    learner.model.lm_head.weight.register_hook(overflow)
    metrics = learner.update(shard(groups))
    assert metrics["skipped"] == 1.0 and "grad_norm" not in metrics and math.isfinite(metrics["loss"])
    assert len(passes) == 2
    other.config = make_settings(tiny_model, tmp_path, updates_per_step=1, token_budget=9999)
    other.update(shard(groups))
    assert equal(all_of(learner), all_of(other))
    assert learner.scheduler.last_epoch == 3
    batch, weights = read_bad_batch(tmp_path / "bad_batches" / "step-000001-rank0")
    assert batch.update == 1
    assert batch.bad_gradients == ("lm_head.weight",)
    replay = replay_batch(load_learner(batch, weights, batch.model, CPU), batch)
    assert replay.finite  # the fault was injected, not in the batch: the replay says so
    assert max(reply.ratio for reply in replay.replies) > 1.01  # pi has moved away from pi_old


def test_over_budget_the_run_ends_with_words_and_only_the_newest_batches_are_kept(tiny_model, groups, tmp_path):
    learner = LocalLearner(make_settings(tiny_model, tmp_path), tiny_model, 10)
    before = part_checksum(learner.model, "all")
    bad = break_logprob(groups, math.nan)
    for step, one in enumerate((bad, groups, bad)):
        learner.update(shard(one, step))
    assert part_checksum(learner.model, "all") != before
    before = part_checksum(learner.model, "all")
    with pytest.raises(FloatingPointError, match=r"2 steps in a row, up to step 4.*tools.replay .*rank0.*grpo\.lr"):
        learner.update(shard(bad, 3))
    assert part_checksum(learner.model, "all") == before
    kept = sorted(path.name for path in (tmp_path / "bad_batches").iterdir())
    assert kept == ["step-000003-rank0", "step-000004-rank0"]


def test_a_batch_that_cannot_be_written_is_said_and_the_run_goes_on(tiny_model, groups, tmp_path):
    (tmp_path / "bad_batches").write_text("a file where the folder should be")
    learner = LocalLearner(make_settings(tiny_model, tmp_path), tiny_model, 10)
    with pytest.warns(UserWarning, match="bad batch of step 1 could not be kept"):
        metrics = learner.update(shard(break_logprob(groups, math.nan)))
    assert metrics["batch_kept"] == 0.0


# --- several workers --------------------------------------------------------------------------------------------


def work(rank, meeting, model, run, results):
    """One of two workers: a good step; two bad ones that only rank 1 could notice by itself."""
    prepare_environment()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    config = make_settings(model, run)
    learner = LocalLearner(config, model, 10, Workers(config.learner, rank=rank, world=2))
    good = make_batch(model)
    bad = [good[0], break_logprob(good, -math.inf)[1]]
    found = []
    for step, groups in enumerate((good, bad, bad)):
        mine = replace(shard(groups, step), groups=(groups[rank],))
        try:
            metrics = learner.update(mine)
            found.append((metrics["skipped"], part_checksum(learner.model, "all")))
        except FloatingPointError as error:
            found.append((str(error), part_checksum(learner.model, "all")))
    results.put((rank, found))
    torch.distributed.destroy_process_group()


def test_a_fault_that_one_worker_sees_is_skipped_by_all(tiny_model, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=work, args=(rank, meeting, tiny_model, tmp_path, results), daemon=True)
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=300) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
    for good, bad, over in found.values():
        assert (good[0], bad[0]) == (0.0, 1.0)
        assert "2 steps in a row" in over[0]
        assert good[1] == bad[1] == over[1] == found[0][0][1]  # the weights, bit for bit
    batches = {}
    for rank in range(2):
        batches[rank], weights = read_bad_batch(tmp_path / "bad_batches" / f"step-000002-rank{rank}")
        assert "lm_head.weight" in weights
    assert batches[0].own_sums["sampler_gap"] != "inf" == batches[1].own_sums["sampler_gap"]
    assert [batches[rank].groups[0].request.id for rank in range(2)] == ["q0", "q1"]


# --- scores -----------------------------------------------------------------------------------------------------


def test_real_scores_pass():
    reward = RewardConfig()
    target = RewardTarget("s1", 1, "2.5", "number", ())
    texts = ["<answer>2.5</answer>", "nonsense", "", "<answer>nan</answer>", "<answer>1e999</answer>"]
    weights = reward_weights(reward)
    assert check_scores("s1", [score_reply(text, target, reward).row(weights) for text in texts], weights) == []


FINE = {"total": 3.0, "format": 1.0, "action": 1.0, "answer": 1.0}
FAR = {"d_t": 0.2, "d_r": 400.0}
ODD = st.sampled_from([math.nan, math.inf, -math.inf, -0.1, "1.0", True, [1.0]]) | st.floats(min_value=3.1)


@settings(max_examples=50)
@given(st.integers(0, 3), st.sampled_from(["total", "format", "action", "answer"]), ODD)
def test_a_score_out_of_bounds_names_sample_reply_and_term(place, term, value):
    scores = [{"terms": dict(FINE), "measures": FAR} for _ in range(4)]
    scores[place]["terms"][term] = value
    (problem,) = check_scores("scene7-q3", scores, reward_weights(RewardConfig()))
    assert problem.startswith(f"sample scene7-q3, reply {place}: {term} is ")


def test_what_may_be_missing_and_what_may_not():
    weights = reward_weights(RewardConfig(action_weight=2.0))
    unknown = {"d_t": None, "d_r": None}
    assert check_scores("a", [{"terms": FINE | {"action": None, "total": 4.0}, "measures": unknown}], weights) == []
    assert len(check_scores("a", [{"terms": {"format": 1.0}}], weights)) == 3
    assert len(check_scores("a", [{"terms": FINE | {"total": None}}], weights)) == 1
    far = check_scores("a", [{"terms": FINE, "measures": {"d_t": math.nan}}], weights)
    assert far == ["sample a, reply 0: d_t is nan, not in [0, inf)"]
    assert check_scores("a", [{"terms": FINE | {"style": 1.0}}], weights) == [
        "sample a, reply 0: the terms style have no weight"
    ]
