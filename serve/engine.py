"""The vLLM engine of a replica: the rollouts' engine, asked one request at a time and answering many together."""

from __future__ import annotations

import asyncio
import uuid
import weakref
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from PIL import Image

from serve.settings import Settings

PROBE_SECONDS = 20.0
"""One token of a short prompt takes milliseconds; an engine that needs this long is not ready."""


class ReasonEngine:
    """vLLM's asynchronous engine with the model of `settings`, and the processor that counts and renders prompts.

    `settings` names the model that is served now; `load` replaces both.
    """

    def __init__(self, settings: Settings) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from hatch_ray.model.base import BAN_BIAS, banned_token_ids, eos_token_ids, load_processor
        from hatch_ray.model.vllm_arguments import engine_arguments
        from serve.weights import RequestTimes, shapes

        self.settings = settings
        self.processor = load_processor(settings.model, settings.config.model.max_pixels)
        arguments = engine_arguments(settings.model, settings.config, gpu=settings.config.serve.gpus > 0)
        arguments["worker_extension_cls"] = "serve.worker.FolderLoader"
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[RequestTimes])
        self._end = weakref.finalize(self, end, self.engine)
        self.eos_ids = eos_token_ids(settings.model, self.processor)
        vocabulary = self.engine.model_config.get_vocab_size()
        self.bias = dict.fromkeys(banned_token_ids(self.processor, vocabulary, self.eos_ids), BAN_BIAS)
        self._shapes = shapes(Path(settings.model))
        self._broken = False
        self._changing = asyncio.Lock()

    @property
    def errored(self) -> bool:
        """Whether the engine has died, or half of a model's weights was loaded."""
        return self._broken or bool(self.engine.errored)

    @property
    def unfinished(self) -> int:
        """Generations that the engine has begun and not ended."""
        return int(self.engine.get_num_unfinished_requests())

    def sampling(self, **parameters: Any) -> Any:
        """vLLM's SamplingParams, ending where rollouts end, with the special vision tokens banned as there."""
        from vllm import SamplingParams

        return SamplingParams(
            stop_token_ids=self.eos_ids, logit_bias=self.bias, skip_special_tokens=False, **parameters
        )

    async def generate(self, prompt: str, images: Sequence[Image.Image], sampling: Any) -> AsyncGenerator[Any]:
        """vLLM's RequestOutput as it grows. Leaving the loop early, or being cancelled, ends the generation.

        Raises vLLM's EngineDeadError when the engine has died, or has half of a model's weights.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._broken:
            raise EngineDeadError()
        inputs: Any = {"prompt": prompt, "multi_modal_data": {"image": list(images)}}
        async with aclosing(self.engine.generate(inputs, sampling, uuid.uuid4().hex)) as outputs:
            async for output in outputs:
                yield output

    def text(self, tokens: Sequence[int]) -> str:
        """The words of one finished completion, as a rollout gives them: all tokens but the end token."""
        ended = tokens and tokens[-1] in self.eos_ids
        return str(self.processor.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=False))

    async def probe(self) -> bool:
        """Whether the engine writes a token."""
        written = False
        try:
            async with asyncio.timeout(PROBE_SECONDS), self._changing:
                async for output in self.generate("ready?", [], self.sampling(temperature=0.0, max_tokens=1)):
                    written = bool(output.outputs[0].token_ids)
        except Exception:  # noqa: BLE001 - whatever it fails with, the engine is not ready
            return False
        return written

    async def load(self, settings: Settings) -> None:
        """Serve the model of `settings`, of the same architecture. No generation may be unfinished.

        Raises ValueError when its weights do not fit, which leaves the engine as it was, and OSError when they cannot
        be read. An engine that fails while it loads is `errored`.
        """
        from serve.weights import check_fit

        await asyncio.to_thread(check_fit, self._shapes, Path(settings.model))
        async with self._changing:
            if self.unfinished:
                raise RuntimeError(f"{self.unfinished} generations are unfinished")
            self._broken = True
            await self.engine.collective_rpc("load_folder", args=(settings.model,))
            await self.engine.reset_mm_cache()
            await self.engine.reset_encoder_cache()
            if not await self.engine.reset_prefix_cache():
                raise RuntimeError("vLLM did not reset its prefix cache")
            self._broken = False
            self.settings = settings

    async def close(self) -> None:
        """End the engine's process. (An engine that is dropped without this ends all the same.)"""
        self._end()
        await asyncio.sleep(0)  # a round of the loop, in which vLLM's cancelled tasks end


def end(engine: Any) -> None:
    """End an AsyncLLM's process and close its sockets, whether or not the event loop in which it was asked still runs.

    vLLM leaves the closing to that loop. In one that runs no more the sockets stay open, and the garbage collection
    that finds their ZeroMQ context waits for them for ever.
    """
    engine.shutdown()
    resources = engine.engine_core.resources
    task = resources.output_queue_task
    if task is None or not task.get_loop().is_running():
        for socket in (resources.input_socket, resources.output_socket):
            if socket is not None:
                socket.close(linger=0)
