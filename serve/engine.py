"""The vLLM engine of a replica."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from PIL import Image

from serve.settings import Settings

BLOCK_SIZE = 32
"""Tokens of a key-value block on CPU: the default of 128 finds no shared prefix in short prompts."""


class ReasonEngine:
    """vLLM's asynchronous engine with the model of `settings`, and the processor that counts and renders prompts."""

    def __init__(self, settings: Settings) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from hatch_ray.model.base import BAN_BIAS, banned_token_ids, eos_token_ids, load_processor

        self.settings = settings
        self.processor = load_processor(settings.model)
        memory: dict[str, Any] = {"kv_cache_memory_bytes": settings.kv_cache_mb * 2**20, "block_size": BLOCK_SIZE}
        if settings.gpu:
            memory = {"gpu_memory_utilization": settings.gpu_memory_utilization}
        self.engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=settings.model,
                dtype=settings.dtype,
                max_model_len=settings.max_length,
                limit_mm_per_prompt={"image": settings.max_images, "video": 0},
                enforce_eager=not settings.gpu,
                seed=settings.seed,
                disable_log_stats=False,
                load_format="safetensors",
                **memory,
            )
        )
        hf_config = self.engine.model_config.hf_config
        eos = eos_token_ids(settings.model, self.processor)
        banned = banned_token_ids(self.processor, hf_config.get_text_config().vocab_size, eos)
        self.eos_ids = eos
        self.bias = dict.fromkeys(banned, BAN_BIAS)

    @property
    def errored(self) -> bool:
        """Whether the engine has died."""
        return bool(self.engine.errored)

    def sampling(self, **parameters: Any) -> Any:
        """vLLM's SamplingParams, with the special vision tokens banned."""
        from vllm import SamplingParams

        return SamplingParams(
            stop_token_ids=self.eos_ids, logit_bias=self.bias, skip_special_tokens=False, **parameters
        )

    def text(self, completion: Any) -> str:
        """The words of one finished completion, as a rollout gives them: all tokens but the end token."""
        tokens = list(completion.token_ids)
        ended = tokens and tokens[-1] in self.eos_ids
        return str(self.processor.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=False))

    async def generate(self, prompt: str, images: Sequence[Image.Image], sampling: Any) -> AsyncIterator[Any]:
        """vLLM's RequestOutput as it grows. Leaving the loop early, or being cancelled, ends the generation."""
        inputs: Any = {"prompt": prompt, "multi_modal_data": {"image": list(images)}}
        async for output in self.engine.generate(inputs, sampling, uuid.uuid4().hex):
            yield output
