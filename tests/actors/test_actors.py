"""Rewards, weights, resources, the learner's update, and the GRPO stage as a whole on real vLLM, Ray and Ray Train."""

import gc
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import actors.stages.fit
from actors.experience.queues import make_shards
from actors.learner.learner import Learner, padded_keys, split_rows
from actors.reward.verifier import RewardActors, Verifier
from actors.rollout.prompts import PromptMaker
from actors.runtime.messages import Group, Reply, Request, Rollout
from actors.runtime.recovery import WorkerDiedError
from actors.runtime.resources import check_carrier, check_resources
from actors.stages.fit import before_restart
from actors.stages.grpo import run_grpo
from actors.weights.publish import (
    checksum_in_place,
    lay_out,
    learned_parts,
    only_learned,
    pack_weights,
    unpack_weights,
)
from hatch_ray.config import ConfigError, make_config
from hatch_ray.data.images import load_image
from hatch_ray.data.store import share_of
from hatch_ray.learning.trainer_state import write_state
from hatch_ray.learning.workers import Workers
from hatch_ray.model.base import load_model, load_processor, part_checksum
from hatch_ray.model.kept_prompts import make_units
from hatch_ray.model.lora import add_lora, merged_weights, without_lora
from hatch_ray.model.prompt_tokens import ImagePatches, Prompt, process_image
from hatch_ray.protocol.prompt import gold_reply
from hatch_ray.rewards.terms import RewardTarget, score_reply
from hatch_ray.run_folder import RunFolder
from hatch_ray.sample import PairPlan, Sample, View
from tests.support.groups import make_batch
from tests.support.hatch import total
from tests.support.pictures import photo
from tests.support.runs import free_port


def make_settings(tiny_model, **sections):
    tree = {
        "model": {"base": str(tiny_model), "template": "compact-v1", "max_pixels": 112 * 112, "max_length": 512},
        "grpo": {"group_size": 4, "prompts_per_step": 2, "max_new_tokens": 16, "token_budget": 150, "lr": 1e-3},
        "rollout": {"cpus": 0.5, "kv_cache_mb": 64},
        "learner": {"cpus": 0.5},
    }
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return make_config(tree)


@pytest.fixture
def samples(tmp_path):
    made = []
    for index in range(6):
        views = []
        for view in range(2):
            path = tmp_path / f"{index}-{view}.png"
            photo(2 * index + view).save(path)
            views.append(View(path))
        plan = PairPlan(0, 1, (("turn_right_deg", 30.0), ("move_forward_m", 1.0 + index)))
        made.append(Sample(f"s{index}", "room", "depth", "number", "How deep is it?", "2.5", tuple(views), (), (plan,)))
    return made


# --- rewards ----------------------------------------------------------------------------------------------------


def test_a_verifier_gives_the_score_and_the_plans_it_read(samples):
    target = RewardTarget.from_sample(samples[0])
    config = make_config({})
    good, bad = Verifier(config).score_many([(gold_reply(samples[0], "actions"), target), ("nonsense", target)])
    expected = score_reply(gold_reply(samples[0], "actions"), target, config.reward)
    assert good["terms"]["total"] == total(expected) == 3.0
    assert good["plans"] == [{"from": 0, "to": 1, "action": [{"turn_right_deg": 30.0}, {"move_forward_m": 1.0}]}]
    assert bad["terms"]["total"] == 0.0
    assert bad["plans"] == []
    assert "format:no_answer_block" in bad["reasons"]


def test_reward_actors_work_without_torch_and_keep_the_order(ray_cluster, tiny_model, samples):
    config = make_settings(tiny_model, reward_actors={"actors": 2, "cpus": 0.1})
    rewards = RewardActors(config)
    jobs = [(gold_reply(s, "actions") if i % 2 else "no", RewardTarget.from_sample(s)) for i, s in enumerate(samples)]
    scores = rewards.score(jobs, chunk=1)
    assert [score["terms"]["total"] for score in scores] == [3.0 if i % 2 else 0.0 for i in range(len(samples))]
    loaded = ray_cluster.get(rewards.pool.actors[0].__ray_call__.remote(lambda _: "torch" in __import__("sys").modules))
    assert loaded is False
    rewards.stop()


def test_a_step_is_rewarded_but_for_what_failed(ray_cluster, tiny_model, samples):
    """Of three prompts one gets a score out of bounds, and one has a reply that the reward actor refuses."""

    class Odd(Verifier):
        def score_many(self, jobs):
            if any(text == "refused" for text, _ in jobs):
                raise ValueError("no such words")
            texts, rows = [text for text, _ in jobs], super().score_many(jobs)
            odd = {"measures": {"d_t": -1.0}}
            return [row | odd if text == "odd" else row for text, row in zip(texts, rows, strict=True)]

    rewards = RewardActors(make_settings(tiny_model, reward_actors={"actors": 1, "cpus": 0.1}), verifier=Odd)
    said = {1: ["no", gold_reply(samples[1], "actions")], 3: ["odd", "no"], 4: ["no", "refused"]}
    requests = [Request(sample.id, "", ()) for sample in samples]
    rollouts = {
        place: Rollout(tuple(Reply((1,), text, np.zeros(1, np.float32), True) for text in texts), 0, 1)
        for place, texts in said.items()
    }
    found = rewards.reward(samples, requests, rollouts)
    rewards.stop()
    assert list(found) == [1, 3, 4]
    assert found[1].group.request is requests[1] and found[1].group.rollout is rollouts[1]
    assert found[1].group.rewards.tolist() == [0.0, 3.0]
    assert found[1].group.advantages[0] == -found[1].group.advantages[1] < 0
    assert [scores["terms"]["total"] for scores in found[1].scores] == [0.0, 3.0]
    assert found[3].reason == "sample s3, reply 0: d_t is -1.0, not in [0, inf)"
    assert "no such words" in found[4].reason


# --- weights ----------------------------------------------------------------------------------------------------


def test_weights_travel_bit_for_bit_in_every_dtype():
    state = {"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "c": torch.randn(2, 2).t()}
    arrived = dict(unpack_weights(pack_weights(state, 3)))
    assert all(torch.equal(arrived[name], state[name]) for name in state)
    assert {name: t.dtype for name, t in arrived.items()} == {name: t.dtype for name, t in state.items()}


def test_changed_weights_are_noticed():
    packed = pack_weights({"a": torch.zeros(3)}, 1)
    packed.arrays["a"] = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="version 1 arrived with checksum"):
        dict(unpack_weights(packed))


def live_weights(seed, size):
    generator = torch.Generator().manual_seed(seed)
    state = {
        "a": torch.randn(size, 3, generator=generator),
        "b": torch.randn(size, generator=generator).bfloat16(),
        "c": torch.randn(2, size, generator=generator).t(),
    }
    live = lay_out(state, 2)
    return state, replace(live, checksum=checksum_in_place(live))


@given(seed=st.integers(0, 2**16), size=st.integers(1, 100))
def test_weights_laid_out_in_one_tensor_are_the_same_bits(seed, size):
    state, live = live_weights(seed, size)
    arrived = dict(unpack_weights(live))
    assert list(arrived) == list(state)
    assert all(torch.equal(arrived[name], state[name]) and arrived[name].dtype == state[name].dtype for name in state)


@given(seed=st.integers(0, 2**16), size=st.integers(1, 100), data=st.data())
def test_a_word_that_changed_or_moved_is_noticed(seed, size, data):
    _, live = live_weights(seed, size)
    words = live.memory.view(torch.int32)
    one, other = (data.draw(st.integers(0, len(words) - 1)) for _ in range(2))
    if words[one] == words[other]:
        words[one] += 1
    else:
        words[[one, other]] = words[[other, one]]
    with pytest.raises(ValueError, match="version 2 arrived with checksum"):
        unpack_weights(live)


def test_sums_go_over_all_pieces(monkeypatch):
    _, live = live_weights(0, 50)
    monkeypatch.setattr("actors.weights.publish.PIECE", 7)
    assert checksum_in_place(live) == live.checksum


def test_a_carrier_that_cannot_work_is_refused_with_the_fix(monkeypatch):
    check_carrier(make_config({"rollout": {"weights": "nixl"}}))
    with pytest.raises(ConfigError, match=r"learner.gpus=1, rollout.gpus=0; set rollout.weights=object_store"):
        check_carrier(make_config({"rollout": {"weights": "nixl"}, "learner": {"gpus": 1}}))
    monkeypatch.setitem(sys.modules, "nixl._api", None)
    check_carrier(make_config({}))
    with pytest.raises(ConfigError, match=r"cannot be imported .*: `make install BACKEND=gpu`"):
        check_carrier(make_config({"rollout": {"weights": "nixl"}}))


def test_all_that_learns_is_sent_and_a_tied_head_too(tiny_model):
    model = load_model(tiny_model)
    assert set(dict(only_learned(model.state_dict().items(), learned_parts(model)))) == set(model.state_dict())
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    assert "lm_head.weight" in dict(only_learned(model.state_dict().items(), learned_parts(model)))
    model.requires_grad_(False)
    model.model.visual.blocks[1].attn.proj.bias.requires_grad_(True)
    sent = dict(only_learned(model.state_dict().items(), learned_parts(model)))
    assert sent and all(name.startswith("model.visual.blocks.1.attn.") for name in sent)
    assert len(sent) == 4


def test_merged_lora_weights_compute_what_the_adapters_do(tiny_model):
    model = load_model(tiny_model)
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(input_ids=ids).logits
    add_lora(model, 4)
    assert torch.equal(model(input_ids=ids).logits, before)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert ".lora_" in name
            assert "language_model" in name
            torch.nn.init.normal_(parameter, std=0.05)
    adapted = model(input_ids=ids).logits
    merged = dict(merged_weights(model))
    assert merged.keys() == plain.keys()
    fresh = load_model(tiny_model)
    fresh.load_state_dict(merged)
    assert not torch.allclose(adapted, before, atol=1e-3)
    assert torch.allclose(fresh(input_ids=ids).logits, adapted, atol=1e-5)
    with without_lora(model):
        assert torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(model(input_ids=ids).logits, adapted)


# --- resources --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"rollout": {"actors": 8}},
            r"rollout: 8 x {CPU 1} are needed, 3 .*8\.6 CPU .*rollout 8 .*has 4",
        ),
        ({"learner": {"gpus": 1}}, "learner: .*because no node has GPU"),
        ({"rollout": {"cpus": 6}}, "because no node has more than 4 CPU: lower rollout.cpus"),
        ({"reward_actors": {"resources": {"reward": 1}}}, "no node has reward: add nodes that do"),
        ({"rollout": {"actors": 1, "cpus": 0.5, "kv_cache_mb": 4_000_000}}, "GB of memory"),
    ],
)
def test_what_is_short_is_said_at_the_start(ray_cluster, tiny_model, sections, message):
    with pytest.raises(ConfigError, match=message):
        check_resources(make_config(make_settings(tiny_model).model_dump() | sections))


def test_a_stage_that_lost_a_machine_waits_for_it_and_then_says_what_is_missing(ray_cluster, tiny_model, monkeypatch):
    config = make_config(make_settings(tiny_model).model_dump() | {"learner": {"cpus": 40}})
    monkeypatch.setattr(actors.stages.fit, "BACK_SECONDS", 0.5)
    said = []
    monkeypatch.setattr("builtins.print", lambda text: said.append(text))
    with pytest.raises(ConfigError, match=r"learner: 1 x .CPU 40. are needed"):
        before_restart(config, "pasta", WorkerDiedError("rank 0"))
    assert "waiting up to" in said[0]
    before_restart(make_settings(tiny_model), "pasta", WorkerDiedError("rank 0"))


def test_enough_is_enough(ray_cluster, tiny_model):
    check_resources(make_settings(tiny_model))


# --- learner ----------------------------------------------------------------------------------------------------


def test_token_budget_and_sharing_change_nothing(ray_cluster, tiny_model):
    groups = make_batch(ray_cluster, tiny_model)
    (shard,) = make_shards(0, groups, 1)
    found = {}
    for budget, shared in ((1, True), (120, True), (150, True), (9999, True), (9999, False)):
        config = make_settings(tiny_model, grpo={"token_budget": budget, "shared_prefix": shared})
        learner = Learner(config, tiny_model, 10)
        metrics = learner.update(shard)
        found[budget, shared] = metrics["loss"], metrics["grad_norm"], learner.model.lm_head.weight.grad.clone()
    expected = found[9999, False]
    for loss, norm, gradient in found.values():
        assert loss == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
        assert norm == pytest.approx(expected[1], rel=1e-4)
        assert torch.allclose(gradient, expected[2], atol=1e-6)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(1, 20), min_size=2, max_size=5)), min_size=1),
    st.integers(1, 120),
    st.booleans(),
)
def test_batches_hold_every_reply_once_and_keep_to_the_budget(sizes, budget, shared):
    prompts = [Prompt((1,) * prompt, ()) for prompt, _ in sizes]
    groups = []
    for number, (prompt, lengths) in enumerate(sizes):
        replies = tuple(Reply((number,) * n, "", np.zeros(n, np.float32), True) for n in lengths)
        advantages = np.arange(len(lengths), dtype=np.float32)
        groups.append(Group(Request(str(number), "", ()), Rollout(replies, 0, prompt), (), advantages, False))
    batches = split_rows(prompts, groups, budget, 4, shared)
    rows = [row for batch in batches for row in batch]
    for prompt, group in zip(prompts, groups, strict=True):
        own = [row for row in rows if row.prompt is prompt]
        assert [reply for row in own for reply in row.replies] == list(group.rollout.replies)
        assert [a for row in own for a in row.advantages] == group.advantages.tolist()
    for batch in batches:
        tokens = sum(
            len(row.prompt.token_ids) * (1 if shared else len(row.replies)) + sum(len(r.token_ids) for r in row.replies)
            for row in batch
        )
        assert tokens <= budget or (len(batch) == 1 and len(batch[0].replies) == 1)
    units = make_units([[row.prompt for row in batch] for batch in batches], shared)
    assert sorted(number for unit in units for number in unit.batches) == list(range(len(batches)))
    for prompt in prompts:  # each is computed once
        own = [unit for unit in units if any(row.prompt is prompt for n in unit.batches for row in batches[n])]
        assert len(own) == 1 or not shared
        assert len(own[0].batches) == 1 or {id(row.prompt) for n in own[0].batches for row in batches[n]} == {
            id(prompt)
        }


def test_a_long_prompt_takes_few_short_ones_along():
    """Keys are padded to the longest prompt: 13 prompts of 150 beside one of 4,000 would make 55 times as many."""
    lengths = [4000, *[150] * 13]
    prompts = [Prompt((1,) * length, ()) for length in lengths]
    reply = Reply((1,) * 20, "", np.zeros(20, np.float32), True)
    groups = [
        Group(Request(str(i), "", ()), Rollout((reply,) * 8, 0, length), (), np.zeros(8, np.float32), False)
        for i, length in enumerate(lengths)
    ]
    batches = split_rows(prompts, groups, 8192, 4)
    assert sum(map(len, batches)) == 14
    assert max(map(padded_keys, batches)) <= 8 * 8192
    assert len(split_rows(prompts[1:], groups[1:], 8192, 4)) == 1


def test_an_image_counts_for_the_encoder_too_once():
    """Two groups of 130 tokens and two images of 100: 360 with one image twice, 460 with two."""
    reply = Reply((1,) * 10, "", np.zeros(10, np.float32), True)

    def batches(*keys):
        prompts = [Prompt((1,) * 110, (ImagePatches(torch.zeros(1), (1, 20, 20), key),)) for key in keys]
        groups = [
            Group(Request(str(i), "", ()), Rollout((reply,) * 2, 0, 110), (), np.zeros(2, np.float32), False)
            for i in range(2)
        ]
        return len(split_rows(prompts, groups, 400, 4))

    assert batches("one", "one") == 1
    assert batches("one", "another") == 2


def test_rewarded_replies_become_likelier_and_the_clip_acts_from_the_second_update(ray_cluster, tiny_model):
    groups = make_batch(ray_cluster, tiny_model)
    (shard,) = make_shards(0, groups, 1)
    learner = Learner(make_settings(tiny_model, grpo={"beta": 0.0}), tiny_model, 10)
    assert learner.reference is None
    first = learner.update(shard)
    second = learner.update(shard)
    assert first["clip_share"] == 0.0
    assert second["loss"] != first["loss"]
    prompts = [learner.prompt(group) for group in groups]
    batch = learner.packed(split_rows(prompts, groups, 9999, 4)[0])
    weight = torch.tensor([a for group in groups for a in group.advantages])[batch.reply]
    with torch.no_grad():
        gained = learner.scorer(batch)[0] - Learner(make_settings(tiny_model), tiny_model, 10).scorer(batch)[0]
    assert (gained * weight).sum() > 0


def test_a_resumed_learner_goes_on_exactly(ray_cluster, tiny_model, tmp_path):
    groups = make_batch(ray_cluster, tiny_model)
    (shard,) = make_shards(0, groups, 1)
    config = make_settings(tiny_model, grpo={"warmup_steps": 5, "schedule": "cosine"})
    straight = Learner(config, tiny_model, 10)
    straight.update(shard)
    state = straight.state()  # a copy, which the next step leaves as it is
    straight.update(shard)
    write_state(state, tmp_path)
    resumed = Learner(config, tiny_model, 10)
    resumed.load(tmp_path)
    resumed.update(shard)
    assert part_checksum(resumed.model, "all") == part_checksum(straight.model, "all")


def test_lora_learns_adapters_only_and_saves_a_plain_model(ray_cluster, tiny_model, tmp_path):
    (shard,) = make_shards(0, make_batch(ray_cluster, tiny_model), 1)
    config = make_settings(tiny_model, model={"lora_rank": 4})
    learner = Learner(config, tiny_model, 10)
    assert learner.update(shard)["kl"] == pytest.approx(0, abs=1e-9)
    learner.update(shard)
    assert learner.update(shard)["kl"] > 0
    learner.save(tmp_path / "model", tiny_model)
    first, last = load_model(tiny_model), load_model(tmp_path / "model")
    changed = {n for n, t in last.state_dict().items() if not torch.equal(t, first.state_dict()[n])}
    assert changed
    assert all("language_model" in name and "proj" in name for name in changed)
    assert part_checksum(last, "vision") == part_checksum(first, "vision")
    resumed = Learner(config, tiny_model, 10)
    write_state(learner.state(), tmp_path)
    resumed.load(tmp_path)
    assert all(torch.equal(t, learner.weights()[n]) for n, t in resumed.weights().items())


def test_a_learner_that_disagrees_with_vllm_stops(ray_cluster, tiny_model):
    (shard,) = make_shards(0, make_batch(ray_cluster, tiny_model, version=0), 1)
    learner = Learner(make_settings(tiny_model), tiny_model, 10)
    with pytest.raises(RuntimeError, match="learner and vLLM differ"):
        learner.update(shard)


def test_two_workers_do_what_one_does(ray_cluster, tiny_model):
    groups = make_batch(ray_cluster, tiny_model)
    config = make_settings(tiny_model, learner={"workers": 2, "cpus": 0.5})
    alone = Learner(config, tiny_model, 10)
    expected = alone.update(make_shards(0, groups, 1)[0])

    class Rank:
        """One worker: an actor, because two tasks may be given to one process, one after the other."""

        def work(self, rank, shard, meeting):
            torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
            learner = Learner(config, tiny_model, 10, Workers(config.learner, rank=rank, world=2))
            metrics = learner.update(shard)
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
            return metrics, {name: p.grad.numpy() for name, p in learner.model.named_parameters()}

    meeting = f"tcp://127.0.0.1:{free_port()}"
    ranks = [ray_cluster.remote(num_cpus=0.5)(Rank).remote() for _ in range(2)]
    shards = make_shards(0, groups, 2)
    jobs = [actor.work.remote(rank, shards[rank], meeting) for rank, actor in enumerate(ranks)]
    results = ray_cluster.get(jobs, timeout=120)
    for rank in ranks:
        ray_cluster.kill(rank)
    for metrics, gradients in results:
        for name in ("loss", "kl", "entropy", "grad_norm"):
            assert metrics[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-7), name
        for name, parameter in alone.model.named_parameters():
            assert np.allclose(gradients[name], parameter.grad.numpy(), atol=1e-5), name


# --- prompts ----------------------------------------------------------------------------------------------------


def photo_samples(folder, pixels, count=6):
    """Questions over two photos, each photo shared by two questions."""
    paths = [folder / f"{pixels}-{index}.png" for index in range(count + 1)]
    for index, path in enumerate(paths):
        photo(index, pixels, pixels).save(path)
    views = [View(path) for path in paths]
    plans = (PairPlan(0, 1, (("turn_left_deg", 5.0),)),)
    task = "depth_prediction_oc_mv"
    return [
        Sample(f"q{i}", "room", task, "number", "How far?", "1", (views[i], views[i + 1]), plans=plans)
        for i in range(count)
    ]


def test_an_image_is_processed_once_whatever_asks_for_it(ray_cluster, tiny_model, tmp_path):
    samples = photo_samples(tmp_path, 84)
    maker = PromptMaker(make_settings(tiny_model), tiny_model, for_learner=True)
    for _ in range(3):  # epochs
        requests = [maker.request(sample) for sample in samples]
    assert maker.processed == maker.unique == 7
    assert requests[0].images[1] is requests[1].images[0]
    prompt = Learner(make_settings(tiny_model), tiny_model, 1)._image(requests[0].images[0])
    expected = process_image(load_processor(tiny_model, 112 * 112), load_image(samples[0].views[0].image_path))
    assert torch.equal(prompt.pixels, expected.pixels) and prompt.grid == expected.grid


def test_the_driver_holds_no_pixels(ray_cluster, tiny_model, tmp_path):
    """Its memory is the same for images of 56 and of 448 pixels a side: 7 of them are 39 MiB as pixels and patches."""
    held = {}
    for pixels in (56, 448):
        samples = photo_samples(tmp_path, pixels)
        config = make_config(
            make_settings(tiny_model).model_dump() | {"model": {"base": str(tiny_model), "max_pixels": 448**2}}
        )
        maker = PromptMaker(config, tiny_model, for_learner=True)
        tracemalloc.start()
        requests = [maker.request(sample) for sample in samples]
        gc.collect()
        held[pixels] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(requests) == 6
    assert held[448] < held[56] + 2**20


# --- the stage --------------------------------------------------------------------------------------------------


def test_grpo_draws_from_a_share_by_seed():
    chosen = share_of(list(range(100)), 0.25, 0)
    assert len(set(chosen)) == 25
    assert chosen == share_of(list(range(100)), 0.25, 0)


def test_prompt_beyond_the_context_is_refused_before_anything_starts(ray_cluster, tiny_model, samples, tmp_path):
    config = make_settings(tiny_model, grpo={"max_new_tokens": 500})
    with pytest.raises(ConfigError, match=r"prompt of sample s\d .* exceeds model.max_length=512"):
        run_grpo(config, RunFolder(tmp_path / "run"), tiny_model, samples, lambda *_: None)
