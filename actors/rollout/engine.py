"""Rollout actors: one vLLM engine each. Prompts and image references go in, sampled replies come out.

How a reply ends: at one of the model's end tokens, which is sampled, scored and learned like any other token, or at
`max_new_tokens`. There are no stop strings. Tokens of `model.base.banned_token_ids` get BAN_BIAS, here and in the
learner's scores.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image

from actors.runtime.deadlines import enter_process, limits
from actors.runtime.messages import (
    GateAnswer,
    ProbeAnswer,
    ProbeScores,
    Reply,
    Request,
    Rollout,
    Sampling,
    StoredImage,
    SyncAnswer,
    WeightsHandle,
)
from actors.weights.publish import LiveWeights, PackedWeights, unpack_weights
from hatch_ray.config import Config

IMAGE_CACHE = 512
"""Decoded images that an engine keeps."""


class RolloutEngine:
    """A vLLM engine with the policy's weights of one version. One rollout actor is this class as a Ray actor."""

    def __init__(self, model: str | Path, config: Config) -> None:
        from vllm import LLM

        from hatch_ray.model.base import BAN_BIAS, banned_token_ids, eos_token_ids, load_processor
        from hatch_ray.model.vllm_arguments import engine_arguments

        enter_process("rollout engine", config)
        self.llm = LLM(**engine_arguments(model, config, gpu=config.rollout.gpus > 0))
        processor = load_processor(model)
        self.tokenizer = processor.tokenizer
        self.eos_ids = eos_token_ids(model, processor)
        vocabulary = self.llm.model_config.get_vocab_size()
        self.logit_bias = dict.fromkeys(banned_token_ids(processor, vocabulary, self.eos_ids), BAN_BIAS)
        self.version = 0
        self._images: OrderedDict[str, Image.Image] = OrderedDict()

    def ready(self) -> int:
        """The version served; answers once the engine is up."""
        return self.version

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        """Sample `sampling.n` replies to each request.

        Raises ValueError naming the request whose prompt does not fit.
        """
        outputs = self._run(requests, [self._parameters(request, sampling) for request in requests])
        return [
            Rollout(tuple(self._reply(one) for one in output.outputs), self.version, len(output.prompt_token_ids))
            for output in outputs
        ]

    def _run(self, requests: Sequence[Request], parameters: Sequence[Any]) -> list[Any]:
        from vllm.exceptions import VLLMValidationError

        prompts = [
            {"prompt": request.prompt, "multi_modal_data": {"image": [self._image(image) for image in request.images]}}
            for request in requests
        ]
        try:
            return list(self.llm.generate(prompts, list(parameters), use_tqdm=False))
        except (ValueError, VLLMValidationError) as error:
            names = ", ".join(request.id for request in requests)
            raise ValueError(f"vLLM refused a prompt among those of {names}: {error}") from None

    def _parameters(self, request: Request, sampling: Sampling, asked: Sequence[int] = ()) -> Any:
        """asked: ids whose log-probabilities are wanted in each place, instead of those of the sampled token."""
        from vllm import SamplingParams

        return SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            max_tokens=sampling.max_new_tokens,
            seed=request.seed,
            stop_token_ids=self.eos_ids,
            logit_bias=self.logit_bias,
            logprobs=None if asked else 0,
            logprob_token_ids=list(asked) or None,
            flat_logprobs=not asked,
            detokenize=False,
        )

    def _reply(self, output: Any) -> Reply:
        tokens = tuple(output.token_ids)
        logprobs = np.asarray(output.logprobs.logprobs, dtype=np.float32)
        assert len(logprobs) == len(tokens), "vLLM gave one log-probability a token"
        ended = tokens[-1] in self.eos_ids
        text = self.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=False)
        return Reply(tokens, text, logprobs, ended)

    def _image(self, image: StoredImage) -> Image.Image:
        if image.hash in self._images:
            self._images.move_to_end(image.hash)
        else:
            self._images[image.hash] = Image.fromarray(ray.get(image.ref, timeout=60))
            if len(self._images) > IMAGE_CACHE:
                self._images.popitem(last=False)
        return self._images[image.hash]

    def probe(self, scores: ProbeScores) -> GateAnswer:
        """What this engine answers to both prompts of a probe. It leaves the caches empty."""
        real, blank = self._ask(scores.probe.request, scores), self._ask(scores.probe.blank, scores)
        bias = self._parameters(scores.probe.request, Sampling()).logit_bias or {}
        self.reset_caches()
        return GateAnswer(self.version, real, blank, tuple(sorted(t for t, value in bias.items() if value < 0)))

    def _ask(self, request: Request, scores: ProbeScores) -> ProbeAnswer:
        parameters = self._parameters(request, Sampling(1, scores.temperature, 1), scores.tokens)
        (output,) = self._run([request], [parameters])
        found = output.outputs[0].logprobs[0]
        logprobs = np.array([found[token].logprob for token in scores.tokens], dtype=np.float32)
        return ProbeAnswer(tuple(output.prompt_token_ids), logprobs, output.num_cached_tokens or 0)

    def load(self, packed: PackedWeights | LiveWeights) -> int:
        """Take over a full state dict; returns the version now served. The caches are emptied."""
        weights = unpack_weights(packed)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.reset_caches()
        self.version = packed.version
        return self.version

    def reset_caches(self) -> None:
        """Forget encoded images and the keys and values of prefixes: they belong to the weights they were made with."""
        self.llm.llm_engine.reset_encoder_cache()
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: requests are still running")

    def load_weights(self, handle: WeightsHandle) -> SyncAnswer:
        """`load` of a published version, with the answer to its probe before and after.

        The probe fills the caches first, so that one which is not emptied shows. It leaves them empty: the next replies
        do not depend on whether a probe was asked.
        """
        packed: PackedWeights | LiveWeights = ray.get(handle.ref, timeout=limits.call)
        scores = handle.probe
        before = after = None
        if scores is not None:
            before = self._ask(scores.probe.request, scores)
        self.load(packed)
        if scores is not None:
            try:
                after = self._ask(scores.probe.request, scores)
            except RuntimeError as error:
                if "Encoder cache miss" not in str(error):
                    raise
                raise RuntimeError(f"version {handle.version}: the encoder cache was not reset ({error})") from error
            self.reset_caches()
        head = "lm_head.weight" in packed.names or not any("embed_tokens" in name for name in packed.names)
        return SyncAnswer(self.version, packed.checksum, head, before, after)

    def load_folder(self, model: str | Path, version: int = 0) -> int:
        """`load` of a saved model of the same architecture."""
        from actors.weights.publish import pack_weights
        from hatch_ray.model.base import load_model

        return self.load(pack_weights(load_model(model).state_dict(), version))
