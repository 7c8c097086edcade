"""Do learner and vLLM compute the same? The driver asks at the start (the gate) and after every weight update.

A probe is a prompt with images; the answer is how likely certain tokens are right after it. The engine answers on its
ordinary path, so that tokenizer, image processor, encoder cache, prefix cache, weights and ban of tokens all take part.

    driver: make_probes -> learner: score_probe -> engines: probe -> driver: check_gate, then the first rollouts
    learner: score_probe of a new version -> WeightsHandle -> engines: load_weights -> driver: check_sync
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import ray
from PIL import Image

from actors.runtime.deadlines import limits, wait_for_all
from actors.runtime.messages import (
    LIKELIEST,
    GateAnswer,
    Probe,
    ProbeScores,
    Request,
    StoredImage,
    StoredPatches,
    SyncAnswer,
    WeightsHandle,
)
from hatch_ray.model.base import BAN_BIAS
from hatch_ray.model.prompt_tokens import process_image
from hatch_ray.sample import Sample

NEVER = BAN_BIAS / 2
"""A log-probability (nats) below this cannot be sampled."""
BLIND = 0.1
"""A side whose answer moves by less than this share of the other's when the images turn grey does not see them."""
GREY = 128


class Maker(Protocol):
    """Makes requests of samples for a learner (`PromptMaker`)."""

    processor: Any

    def request(self, sample: Sample) -> Request: ...


class ParityError(RuntimeError):
    """Learner and engine do not compute the same, or an engine does not hold what was sent. No run may go on."""


# --- probes -----------------------------------------------------------------------------------------------------


def make_probes(samples: Sequence[Sample], maker: Maker) -> tuple[Probe, ...]:
    """One probe for every number of images that the samples have, fewest first."""
    firsts: dict[int, Sample] = {}
    for sample in samples:
        firsts.setdefault(len(sample.views), sample)
    return tuple(make_probe(firsts[count], maker) for count in sorted(firsts))


def make_probe(sample: Sample, maker: Maker) -> Probe:
    """The probe of one sample: what its answer begins with. `maker` must make requests for a learner."""
    request = maker.request(sample)
    name = f"the probe with {len(sample.views)} images (sample {sample.id})"
    grey = tuple(grey_image(image, maker.processor) for image in request.images)
    prompt = request.prompt + "<answer>"
    return Probe(Request(name, prompt, request.images), Request(f"{name}, all grey", prompt, grey))


def grey_image(image: StoredImage, processor: Any) -> StoredImage:
    """An image of the same size that shows nothing."""
    pixels = np.full_like(ray.get(image.ref, timeout=60), GREY)
    patches = process_image(processor, Image.fromarray(pixels))
    stored = StoredPatches(ray.put(patches.pixels.numpy()), patches.grid)
    return StoredImage(f"grey-{pixels.shape[1]}x{pixels.shape[0]}", ray.put(pixels), stored)


# --- comparisons ------------------------------------------------------------------------------------------------


def gap(first: np.ndarray, second: np.ndarray) -> float:
    """Mean difference (nats) over the likeliest tokens; not a number counts as infinite."""
    found = np.abs(first[:LIKELIEST] - second[:LIKELIEST]).mean()
    return float(found) if np.isfinite(found) else float("inf")


def check_gate(engine: str, scores: ProbeScores, answer: GateAnswer) -> None:
    """Raise ParityError naming the fault and the engine, if its answers are not the learner's."""
    what = f"parity gate: {engine}, {scores.probe.request.id}: "
    if answer.version != scores.version:
        raise ParityError(f"{what}it serves version {answer.version}, the learner starts with {scores.version}")
    if answer.real.prompt_ids != scores.prompt_ids:
        raise ParityError(what + _different_ids(scores.prompt_ids, answer.real.prompt_ids))
    _check_ban(what, scores, answer)
    assert scores.blank_logprobs is not None, "the gate compares grey images too"
    found = gap(answer.real.logprobs, scores.logprobs)
    learner = gap(scores.logprobs, scores.blank_logprobs)
    vllm = gap(answer.real.logprobs, answer.blank.logprobs)
    sight = f"grey images move its log-probabilities by {{:.3g}} nats, and those of {{}} by {max(learner, vllm):.3g}"
    if vllm <= BLIND * learner and learner > 0:
        raise ParityError(
            f"{what}pixels are dropped in vLLM: {sight.format(vllm, 'the learner')}. Look at its image processor and "
            "caches (mm_processor_kwargs, model.max_images)"
        )
    if learner <= BLIND * vllm:  # neither sees anything: both are 0
        other = "vLLM" if vllm else "vLLM (it does not see them either)"
        raise ParityError(f"{what}pixels are dropped in the learner: {sight.format(learner, other)}")
    if found > scores.bound:
        raise ParityError(
            f"{what}learner and vLLM differ by {found:.3g} nats a token with equal weights (bound {scores.bound:g}): "
            "look at rollout.dtype and learner.compute, rotary positions, the order of the images, grpo.temperature, "
            "and the versions of vllm and transformers"
        )


def _check_ban(what: str, scores: ProbeScores, answer: GateAnswer) -> None:
    vision = dict(zip(scores.tokens[LIKELIEST:], answer.real.logprobs[LIKELIEST:].tolist(), strict=True))
    free = {token: value for token, value in vision.items() if not value < NEVER}
    if free:
        listed = ", ".join(f"{token} (log-probability {value:.3g})" for token, value in free.items())
        raise ParityError(
            f"{what}special vision tokens can be sampled: {listed}; a reply that holds one breaks training"
        )
    if set(answer.banned) != set(scores.banned):
        ids = sorted(set(answer.banned) ^ set(scores.banned))
        raise ParityError(
            f"{what}learner and vLLM ban different tokens: {len(ids)} ids, {ids[:8]} among them; do both read the same "
            "tokenizer and generation_config.json?"
        )


def _different_ids(learner: Sequence[int], vllm: Sequence[int]) -> str:
    shorter = min(len(learner), len(vllm))
    place = next((i for i in range(shorter) if learner[i] != vllm[i]), shorter)
    here, there = (ids[place] if place < len(ids) else "nothing" for ids in (learner, vllm))
    return (
        f"prompt ids differ: {len(learner)} tokens in the learner, {len(vllm)} in vLLM; the first difference is at "
        f"{place}: {here} and {there}. Tokenizer, chat template or image processor (model.max_pixels) differ"
    )


def check_sync(engine: str, handle: WeightsHandle, answer: SyncAnswer) -> None:
    """Raise ParityError naming engine, version and the probable fault, if an engine is not what was published."""
    what = f"weight update: {engine}, version {handle.version}: "
    if answer.version != handle.version:
        raise ParityError(f"{what}it serves version {answer.version}")
    if handle.checksum and answer.checksum != handle.checksum:
        raise ParityError(f"{what}weights with checksum {answer.checksum} were loaded, {handle.checksum} was published")
    scores = handle.probe
    if scores is None:
        return
    assert answer.before is not None, "an engine answers what it is asked"
    assert answer.after is not None, "an engine answers what it is asked"
    if answer.after.cached:
        raise ParityError(
            f"{what}the prefix cache was not reset: {answer.after.cached} tokens of the probe still have keys and "
            "values of older weights"
        )
    found = gap(answer.after.logprobs, scores.logprobs)
    if found <= scores.bound:
        return
    if not answer.head:
        fault = "a stale lm_head: embeddings came without lm_head.weight (send state_dict(), not named_parameters())"
    elif gap(answer.after.logprobs, answer.before.logprobs) < gap(answer.before.logprobs, scores.logprobs) / 10:
        fault = "its answers are those of the weights before: what was sent is not what it computes with"
    else:
        fault = "a tensor changed between the checksum and the model, or an encoder cache was not reset"
    raise ParityError(f"{what}its answers to the probe differ by {found:.3g} nats (bound {scores.bound:g}): {fault}")


def check_engines(engines: Sequence[Any], scores: Sequence[ProbeScores]) -> None:
    """The gate: every engine answers every probe. Raises ParityError, or StageTimeoutError."""
    for score in scores:
        answers = wait_for_all([engine.probe.remote(score) for engine in engines], "parity gate", limits.call)
        for number, answer in enumerate(answers):
            check_gate(f"engine {number}", score, answer)
