"""Parity gate and sync probe on a real vLLM engine that is broken in one place at a time; each fault is named."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.experience.queues import make_shards
from actors.learner.learner import Learner
from actors.reward.verifier import make_groups
from actors.rollout.engines import EnginePool
from actors.rollout.prompts import PromptMaker
from actors.runtime.messages import GateAnswer, ProbeAnswer, Sampling, SyncAnswer, WeightsHandle
from actors.weights.parity import ParityError, check_engines, check_gate, check_sync, gap, make_probes
from actors.weights.probe_scores import FLOOR, STEPS, logit_step, parity_bound
from actors.weights.publish import pack_weights
from hatch_ray.config import make_config
from hatch_ray.model.base import load_model, load_processor, save_model
from hatch_ray.model.source import model_source
from hatch_ray.sample import Sample, View
from tests.support.faulty_engine import NORM, FaultyEngine, flip_bit
from tests.support.pictures import photo

NOISE = 2e-4
"""What learner and vLLM may differ by in float32."""


@pytest.fixture(scope="module")
def tied_model(tiny_model, tmp_path_factory):
    """The tiny model with one tensor for embeddings and head, as Qwen2.5-VL 3B has it."""
    model = load_model(tiny_model)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    with torch.no_grad():  # else the token just read is certain to come again, and nothing can be learned
        model.lm_head.weight.mul_(0.05)
    return save_model(model, load_processor(tiny_model), tmp_path_factory.mktemp("tied") / "model")


@pytest.fixture(scope="module")
def config(tied_model):
    return make_config(
        {
            "model": {"base": str(tied_model), "template": "compact-v1", "max_pixels": 112 * 112, "max_length": 512},
            "grpo": {"group_size": 4, "prompts_per_step": 3, "max_new_tokens": 16, "lr": 1.5e-4, "temperature": 0.8},
            "rollout": {"cpus": 0.5, "kv_cache_mb": 64},
        }
    )


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Samples over one, two and three images."""
    folder, made = tmp_path_factory.mktemp("views"), []
    for count in (1, 2, 3):
        paths = [folder / f"{count}-{view}.png" for view in range(count)]
        for view, path in enumerate(paths):
            photo(5 * count + view).save(path)
        views = tuple(View(path) for path in paths)
        made.append(Sample(f"s{count}", "room", "depth", "number", "How deep is it?", "2.5", views, (), ()))
    return made


class Pair:
    """A learner and an engine on the same weights, and the faults that the engine is given."""

    def __init__(self, ray, config, model, samples):
        self.ray, self.samples = ray, samples
        self.engines = EnginePool(model, config, engine=FaultyEngine)
        self.engines.ready()
        (self.engine,) = self.engines.pool.actors
        self.maker = PromptMaker(config, model, for_learner=True)
        self.probes = make_probes(samples, self.maker)
        self.learner = Learner(config, model, 10)
        self.version = 0

    def ask(self, method, *arguments):
        return self.ray.get(getattr(self.engine, method).remote(*arguments), timeout=300)

    def scores(self, learner=None):
        return [(learner or self.learner).score_probe(probe, self.version, with_blank=True) for probe in self.probes]

    def update(self):
        """One real step of GRPO at the demo's rate, on replies of the engine."""
        requests = [self.maker.request(sample, 7 + self.version) for sample in self.samples]
        rollouts = self.ask("generate", requests, Sampling(4, 0.8, 16))
        rewards = np.random.default_rng(self.version).normal(size=12)
        groups = make_groups(requests, rollouts, [{"terms": {"total": float(reward)}} for reward in rewards])
        self.learner.update(make_shards(self.version, groups, 1)[0])
        self.version += 1

    def handle(self, without=(), change=None):
        """The learner's present weights as it publishes them, without some tensors, or changed on the way."""
        state = {name: t.clone() for name, t in self.learner.each_learned_weight() if name not in without}
        packed = pack_weights(state, self.version)
        published = packed.checksum
        if change is not None:
            packed.arrays[NORM] = change(packed.arrays[NORM])
        scores = self.learner.score_probe(self.probes[-1], self.version)
        return WeightsHandle(self.version, self.ray.put(packed), published, scores)

    def sync(self, fault="", **changes):
        self.ask("break_by", fault)
        try:
            self.engines.sync(self.handle(**changes))
        finally:
            self.ask("break_by", "")


@pytest.fixture(scope="module")
def started(ray_cluster, config, tied_model, samples):
    pair = Pair(ray_cluster, config, tied_model, samples)
    yield pair
    pair.engines.stop()


@pytest.fixture
def pair(started):
    """Learner and engine in agreement, whatever the test before broke."""
    started.sync()
    return started


# --- the gate ---------------------------------------------------------------------------------------------------


def test_gate_opens_for_every_number_of_images(pair):
    scores = pair.scores()
    assert [len(score.probe.request.images) for score in scores] == [1, 2, 3]
    check_engines([pair.engine], scores)
    for score in scores:
        answer = pair.ask("probe", score)
        assert gap(answer.real.logprobs, score.logprobs) < NOISE
        assert gap(answer.blank.logprobs, score.blank_logprobs) < NOISE
        assert answer.real.cached == 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("pixels", r"engine 0, the probe with 1 images \(sample s1\): pixels are dropped in vLLM: grey images move"),
        ("prompt", r"engine 0, .*prompt ids differ: \d+ tokens in the learner, \d+ in vLLM; the first difference is"),
        ("ban", r"engine 0, .*special vision tokens can be sampled: \d+ \(log-probability -\d"),
    ],
)
def test_gate_names_the_fault_of_an_engine(pair, fault, message):
    pair.ask("break_by", fault)
    try:
        with pytest.raises(ParityError, match=message):
            check_engines([pair.engine], pair.scores())
    finally:
        pair.ask("break_by", "")


def test_gate_names_a_learner_that_sees_no_pixels(pair, config, tied_model):
    class Blind(Learner):
        def _image(self, image):
            patches = super()._image(image)
            return replace(patches, pixels=torch.zeros_like(patches.pixels), key="")

    blind = Blind(config, tied_model, 10)
    blind.model.load_state_dict(pair.learner.model.state_dict())
    with pytest.raises(ParityError, match=r"pixels are dropped in the learner: grey images move .* by 0 nats"):
        check_engines([pair.engine], pair.scores(blind))


def test_gate_names_other_weights_and_versions(pair, config, tied_model):
    other = Learner(config, tied_model, 10)
    with torch.no_grad():
        other.model.lm_head.weight.mul_(1.5)
    with pytest.raises(ParityError, match=r"learner and vLLM differ by 0\.\d+ nats a token with equal weights"):
        check_engines([pair.engine], pair.scores(other))
    with pytest.raises(ParityError, match=rf"it serves version {pair.version}, the learner starts with 99"):
        check_engines([pair.engine], [replace(pair.scores()[0], version=99)])


def test_replies_do_not_depend_on_probes(pair):
    request = pair.maker.request(pair.samples[2], 3)
    sampling = Sampling(4, 1.0, 12)
    (plain,) = pair.ask("generate", [request], sampling)
    pair.ask("reset_caches")
    pair.ask("probe", pair.scores()[2])
    (probed,) = pair.ask("generate", [request], sampling)
    assert [reply.token_ids for reply in plain.replies] == [reply.token_ids for reply in probed.replies]
    assert all(np.array_equal(a.logprobs, b.logprobs) for a, b in zip(plain.replies, probed.replies, strict=True))


# --- bounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_bound_follows_from_how_numbers_of_the_dtype_step(dtype):
    kind = getattr(torch, dtype)
    for size in (0.8, 1.0, 9.5, 16.0, 20.0, 31.9):
        number = torch.tensor(size).to(kind)
        above = torch.nextafter(number, torch.tensor(float("inf"), dtype=kind))
        assert logit_step(dtype, float(number)) == float(above - number)
    logits = torch.from_numpy(np.random.default_rng(0).uniform(16, 32, size=(200, 500))).double()
    rounded = (logits + 0.4 * logit_step(dtype, 20)).to(kind).double(), logits.to(kind).double()
    moved = (rounded[0].log_softmax(-1) - rounded[1].log_softmax(-1)).abs()
    assert 0 < float(moved.max()) <= 2 * logit_step(dtype, 20), "what rounding the logits alone can do"
    assert parity_bound("bfloat16", 20) == 0.5 and parity_bound("bfloat16", 20, temperature=0.5) == 1
    assert parity_bound("float32", 20) == FLOOR > 5 * NOISE - 1e-12


@pytest.mark.rest
def test_a_bfloat16_model_stays_within_its_bound_and_another_one_does_not(ray_cluster, config, samples):
    """hatch-tiny, whose logits reach 13; learner and engine compute in bfloat16."""
    kinds = {"learner": {"compute": "bfloat16"}, "rollout": {"cpus": 0.5, "kv_cache_mb": 64, "dtype": "bfloat16"}}
    tree = config.model_dump(mode="json")
    tree["model"]["base"] = "hatch-tiny"
    folder = model_source("hatch-tiny")
    pair = Pair(ray_cluster, make_config(tree | kinds), folder, samples)
    try:
        scores = pair.scores()
        check_engines([pair.engine], scores)
        found = [(gap(pair.ask("probe", score).real.logprobs, score.logprobs), score.bound) for score in scores]
        print([f"{difference:.3g} of {bound:.3g}" for difference, bound in found])
        assert all(2 * NOISE < difference < bound for difference, bound in found)
        assert {bound for _, bound in found} <= {STEPS * step / 0.8 for step in (2**-5, 2**-4, 2**-3)}
        pair.update()
        pair.sync()
        with torch.no_grad():
            pair.learner.model.lm_head.weight.mul_(1.5)
        with pytest.raises(ParityError, match=r"learner and vLLM differ by \d\.\d+ nats a token .* \(bound 0\."):
            check_engines([pair.engine], pair.scores())
    finally:
        pair.engines.stop()


# --- weight updates ---------------------------------------------------------------------------------------------


def test_one_update_is_far_above_the_bound_and_the_answer_far_below(pair):
    pair.update()
    handle = pair.handle()
    answer = pair.ask("load_weights", handle)
    check_sync("engine 0", handle, answer)
    assert gap(answer.before.logprobs, handle.probe.logprobs) > 5 * handle.probe.bound == 5 * FLOOR
    assert gap(answer.after.logprobs, handle.probe.logprobs) < NOISE
    assert (answer.version, answer.checksum) == (pair.version, handle.checksum)
    assert answer.before.cached > 0  # of the rollouts: a cache that is not reset has something to show
    assert answer.after.cached == 0


def test_a_bit_flipped_on_the_way_is_refused_before_it_is_loaded(pair):
    served = pair.ask("ready")
    pair.version += 1
    with pytest.raises(ParityError, match=rf"engine 0: weights of version {pair.version} arrived"):
        pair.sync(change=flip_bit)
    assert pair.ask("ready") == served


@pytest.mark.parametrize(
    ("fault", "without", "message"),
    [
        ("bit", (), "a tensor changed between the checksum and the model"),
        ("", ("lm_head.weight",), "a stale lm_head: embeddings came without lm_head.weight"),
        ("ignores", (), "its answers are those of the weights before"),
        ("prefix cache", (), r"the prefix cache was not reset: \d+ tokens of the probe still have keys"),
    ],
)
def test_probe_names_the_fault_after_one_update(pair, fault, without, message):
    pair.update()
    with pytest.raises(ParityError, match=rf"rollout engine 0.* version {pair.version}: .*{message}"):
        pair.sync(fault, without=without)


def test_an_encoder_cache_that_was_not_reset_is_named(pair):
    """The last of the file: vLLM itself does not survive this one."""
    pair.update()
    with pytest.raises(ParityError, match=rf"engine 0: version {pair.version}: the encoder cache was not reset"):
        pair.sync("encoder cache")


# --- pure comparisons -------------------------------------------------------------------------------------------


def test_what_is_not_a_number_agrees_with_nothing():
    numbers = np.zeros(20, np.float32)
    assert gap(numbers, numbers) == 0
    assert gap(numbers, np.where(np.arange(20) == 3, np.nan, numbers)) == float("inf")


def test_versions_and_checksums_of_an_answer_are_compared():
    handle = WeightsHandle(3, None, "abc")
    check_sync("engine 1", handle, SyncAnswer(3, "abc", True, None, None))
    with pytest.raises(ParityError, match="engine 1, version 3: it serves version 2"):
        check_sync("engine 1", handle, SyncAnswer(2, "abc", True, None, None))
    with pytest.raises(ParityError, match="checksum abd were loaded, abc was published"):
        check_sync("engine 1", handle, SyncAnswer(3, "abd", True, None, None))


def test_another_ban_is_named(started):
    score = started.scores()[0]
    real = ProbeAnswer(score.prompt_ids, score.logprobs, 0)
    answer = GateAnswer(score.version, real, ProbeAnswer(score.prompt_ids, score.blank_logprobs, 0), score.banned)
    check_gate("engine 0", score, answer)
    with pytest.raises(ParityError, match=rf"ban different tokens: 1 ids, \[{score.banned[0]}\]"):
        check_gate("engine 0", score, replace(answer, banned=score.banned[1:]))
