"""A real vLLM engine in a real Ray actor against the learner's own numbers."""

import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from actors.experience.queues import WeightsBoard
from actors.rollout.engines import EnginePool
from actors.runtime.messages import Request, Sampling, StoredImage, WeightsHandle
from actors.runtime.recovery import RESTARTABLE
from actors.weights.publish import learned_parts, only_learned, pack_weights
from hatch_ray.config import make_config
from hatch_ray.data.images import image_hash
from hatch_ray.model.base import banned_token_ids, eos_token_ids, load_model, load_processor
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.lora import add_lora, merged_weights
from hatch_ray.model.packing import pack
from hatch_ray.model.prompt_tokens import process_image, tokenize_prompt
from hatch_ray.protocol.prompt import build_prompt
from tests.support.deaths import kill_and_wait
from tests.support.pictures import photo
from tests.support.publishing import Learning, disturb

MAX_PIXELS = 112 * 112


@pytest.fixture(scope="module")
def config():
    return make_config(
        {
            "model": {"max_pixels": MAX_PIXELS, "max_length": 768, "max_images": 3, "template": "compact-v1"},
            "rollout": {"cpus": 0.5, "kv_cache_mb": 64},
        }
    )


@pytest.fixture(scope="module")
def engines(engine_pool, tiny_model, config):
    return engine_pool(tiny_model, config)


@pytest.fixture
def policy(tiny_model):
    return load_model(tiny_model), load_processor(tiny_model, MAX_PIXELS)


def make_request(ray, processor, images, seed=0):
    messages = build_prompt("How far is the red chair?", len(images), "number", "actions", "compact-v1")
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    stored = tuple(StoredImage(image_hash(image), ray.put(np.asarray(image))) for image in images)
    return Request("test", text, stored, seed)


def learner_logprobs(model, processor, request, images, replies, temperature):
    """The learner's log-probabilities of the sampled tokens, one tensor a reply."""
    ends = eos_token_ids(model, processor)
    banned = banned_token_ids(processor, model.lm_head.out_features, ends)
    prompt = tokenize_prompt(processor, request.prompt, [process_image(processor, image) for image in images])
    batch = pack(model, [prompt], [[reply.token_ids for reply in replies]])
    with torch.no_grad():
        flat, _ = ReplyScorer(model, temperature, banned)(batch)
    return prompt, flat.split([len(reply.token_ids) for reply in replies])


IMAGES = {
    1: [photo(1)],
    2: [photo(2), photo(3, 96, 130)],
    3: [photo(4), photo(5, 300, 200), photo(6, 40, 60)],
}
"""By number of images; sizes that the processor must round, shrink and enlarge are among them."""


@pytest.mark.parametrize("n_images", [1, 2, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_learner_and_vllm_agree(ray_cluster, engines, policy, n_images, temperature):
    model, processor = policy
    images = IMAGES[n_images]
    request = make_request(ray_cluster, processor, images, seed=3)
    (rollout,) = engines.generate([request], Sampling(4, temperature, 24))
    prompt, found = learner_logprobs(model, processor, request, images, rollout.replies, temperature)
    assert rollout.prompt_tokens == len(prompt.token_ids)
    assert len({reply.token_ids for reply in rollout.replies}) == 4
    for reply, logprobs in zip(rollout.replies, found, strict=True):
        assert np.abs(logprobs.numpy() - reply.logprobs).max() < 1e-3


def test_same_seed_same_replies(ray_cluster, engines, policy):
    _, processor = policy
    request = make_request(ray_cluster, processor, IMAGES[2], seed=11)
    first, second = (engines.generate([request], Sampling(3, 1.0, 12))[0] for _ in range(2))
    assert [r.token_ids for r in first.replies] == [r.token_ids for r in second.replies]


def test_vision_tokens_are_never_sampled(ray_cluster, engines, policy):
    """A model that wants nothing but image tokens still may not say one."""
    model, processor = policy
    image_id = model.config.image_token_id
    state = model.state_dict()
    state["lm_head.weight"] = state["lm_head.weight"].clone()
    state["lm_head.weight"][image_id] = 20 * state["lm_head.weight"][5]
    engines.sync(WeightsHandle(1, ray_cluster.put(pack_weights(state, 1))))
    request = make_request(ray_cluster, processor, IMAGES[1])
    (rollout,) = engines.generate([request], Sampling(8, 1.0, 24))
    assert rollout.version == 1
    banned = set(banned_token_ids(processor, model.lm_head.out_features, eos_token_ids(model, processor)))
    assert not banned & {token for reply in rollout.replies for token in reply.token_ids}


def test_weights_after_a_sync_give_the_learners_greedy_text(ray_cluster, engines, policy):
    model, processor = policy
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    images = IMAGES[3]
    request = make_request(ray_cluster, processor, images)
    greedy = Sampling(1, 0.0, 16)
    before = engines.generate([request], greedy)[0].replies[0]
    engines.sync(WeightsHandle(7, ray_cluster.put(pack_weights(model.state_dict(), 7))))
    rollout = engines.generate([request], greedy)[0]
    assert rollout.version == 7
    assert rollout.replies[0].token_ids != before.token_ids
    inputs = processor(text=[request.prompt], images=images, return_tensors="pt")
    banned = banned_token_ids(processor, model.lm_head.out_features, eos_token_ids(model, processor))
    out = model.generate(**inputs, max_new_tokens=16, do_sample=False, suppress_tokens=banned)
    expected = out[0, inputs["input_ids"].shape[1] :].tolist()
    assert list(rollout.replies[0].token_ids) == expected
    assert rollout.replies[0].ended == (expected[-1] in eos_token_ids(model, processor))


@pytest.fixture
def readers(ray_cluster, request, tiny_model, config):
    """(carrier, engines): over NIXL engines of their own, since one that has read so keeps a core busy to its end."""
    if request.param == "object_store":
        yield request.param, request.getfixturevalue("engines")
        return
    pool = EnginePool(tiny_model, config)
    pool.ready()
    yield request.param, pool
    pool.stop()


@pytest.mark.parametrize("readers", ["object_store", pytest.param("nixl", marks=pytest.mark.rest)], indirect=True)
def test_either_carrier_brings_what_was_published(ray_cluster, readers, policy, tiny_model):
    """The first version is fetched when the second one is published already."""
    carrier, engines = readers
    model, processor = policy
    board = ray_cluster.remote(WeightsBoard).options(num_cpus=0, max_concurrency=4).remote(30)
    learning = ray_cluster.remote(Learning).options(num_cpus=0).remote(tiny_model, board, carrier)
    request = make_request(ray_cluster, processor, IMAGES[2])
    handles = []
    for version in (31, 32):
        ray_cluster.get(learning.publish.remote(version), timeout=120)
        handles.append(ray_cluster.get(board.wait_for.remote(version), timeout=60)[1])
    for handle in handles:
        disturb(model, handle.version)
        engines.sync(handle)
        (rollout,) = engines.generate([request], Sampling(4, 1.0, 12))
        assert rollout.version == handle.version
        _, found = learner_logprobs(model, processor, request, IMAGES[2], rollout.replies, 1.0)
        for logprobs, reply in zip(found, rollout.replies, strict=True):
            assert np.abs(logprobs.numpy() - reply.logprobs).max() < 1e-3
    handles.clear()
    del handle
    engines.held = replace(engines.held, handle=None)
    for version in range(33, 36):  # the board keeps the newest one; the others are let go
        ray_cluster.get(learning.publish.remote(version), timeout=120)
    end = time.monotonic() + 30
    while ray_cluster.get(learning.held.remote(), timeout=60) > (carrier == "nixl"):
        assert time.monotonic() < end, "old versions are kept"
        time.sleep(0.2)
    process = psutil.Process(ray_cluster.get(learning.process.remote(), timeout=60))
    kill_and_wait(learning, learning.held.remote)
    process.wait(timeout=60)  # till then NIXL's own thread answers readers, though the actor is dead to Ray
    (_, gone) = ray_cluster.get(board.wait_for.remote(35), timeout=60)
    if carrier == "nixl":  # what lies in the object store may outlive the process that put it there
        with pytest.raises(RESTARTABLE):
            engines.sync(gone)
    ray_cluster.kill(board)


def test_what_learns_is_enough_for_the_engines(ray_cluster, engines, policy):
    """With LoRA the attentions and MLPs travel, nothing else; the engines then score as the adapted model does."""
    model, processor = policy
    engines.sync(WeightsHandle(20, ray_cluster.put(pack_weights(model.state_dict(), 20))))
    add_lora(model, 4)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    whole = dict(merged_weights(model))
    part = dict(only_learned(whole.items(), learned_parts(model)))
    assert set(part) == {name for name in whole if ".self_attn." in name or (".mlp." in name and "language" in name)}
    engines.sync(WeightsHandle(21, ray_cluster.put(pack_weights(part, 21))))
    request = make_request(ray_cluster, processor, IMAGES[2])
    (rollout,) = engines.generate([request], Sampling(4, 1.0, 12))
    _, found = learner_logprobs(model, processor, request, IMAGES[2], rollout.replies, 1.0)
    for logprobs, reply in zip(found, rollout.replies, strict=True):
        assert np.allclose(logprobs.numpy(), reply.logprobs, atol=2e-3)


def test_end_token_is_part_of_the_reply_but_not_of_its_text(ray_cluster, engines, policy):
    """A model that ends at once: one token, scored, empty text."""
    model, processor = policy
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    end = processor.tokenizer.eos_token_id
    state["lm_head.weight"][:] = 0
    state["model.language_model.norm.weight"][:] = 0
    engines.sync(WeightsHandle(8, ray_cluster.put(pack_weights(state, 8))))
    request = make_request(ray_cluster, processor, IMAGES[1])
    (rollout,) = engines.generate([request], Sampling(64, 1.0, 200))
    ended = [reply for reply in rollout.replies if reply.ended]
    assert ended
    for reply in ended:
        assert reply.token_ids[-1] == end
        assert end not in reply.token_ids[:-1]
        assert len(reply.logprobs) == len(reply.token_ids)
        assert "<|im_end|>" not in reply.text
    for reply in rollout.replies:
        assert reply.ended or len(reply.token_ids) == 200


def test_wrong_weights_are_refused(ray_cluster, engines, policy):
    model, _ = policy
    packed = pack_weights(model.state_dict(), 9)
    packed.arrays["lm_head.weight"] = packed.arrays["lm_head.weight"] + 1
    with pytest.raises(ValueError, match="arrived with checksum"):
        ray_cluster.get(
            engines.pool.actors[0].load_weights.remote(WeightsHandle(9, ray_cluster.put(packed))), timeout=60
        )


def test_prompt_that_does_not_fit_is_refused_by_name(ray_cluster, engines, policy):
    _, processor = policy
    request = make_request(ray_cluster, processor, IMAGES[1])
    long = Request("a-long-one", request.prompt + "1" * 900, request.images)
    with pytest.raises(ValueError, match="a-long-one"):
        engines.generate([long], Sampling(1, 0.0, 4))
