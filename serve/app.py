"""The service: `POST /reason` and `GET /healthz` on Ray Serve, one vLLM engine a replica (docs/serving.md).

Prompts are built and replies are read by the code that training uses, with the template of the run's config.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import ray
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image
from ray import serve as ray_serve
from ray.serve.config import HTTPOptions

from hatch_ray.config import Config, ConfigError
from hatch_ray.data.images import shrink
from hatch_ray.environment import variables
from hatch_ray.geometry.actions import compose
from hatch_ray.model.prompt_tokens import image_tokens_by_size
from hatch_ray.protocol.prompt import Mode, Template, build_prompt, stage_mode
from hatch_ray.protocol.response import parse_response
from hatch_ray.run_folder import RunFolder
from serve.images import decode_image
from serve.schema import MAX_BODY_BYTES, Health, Plan, Pose, ReasonReply, ReasonRequest, Refusal, refusal_of

APP_NAME = "hatch"
START_DEADLINE_S = 600.0
REPLY_DEADLINE_S = 120.0
BLOCK_SIZE = 32
"""Tokens of a key-value block on CPU: the default of 128 finds no shared prefix in short prompts."""
STOP = "</answer>"

logger = logging.getLogger("ray.serve")
api = FastAPI(title="hatch-ray", docs_url=None, redoc_url=None)


@api.exception_handler(Refusal)
async def refuse(_: Request, refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.body, status_code=refusal.status)


@api.exception_handler(RequestValidationError)
async def refuse_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    return await refuse(request, refusal_of(error.errors()[0]))


@api.middleware("http")
async def limit_body(request: Request, call_next: Any) -> Any:
    """Refuse a body that is too large before it is read into memory."""
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        what = f"the body has {length} bytes, at most {MAX_BODY_BYTES} are read"
        return await refuse(request, Refusal("body_too_large", what, "body", "send smaller images", status=413))
    return await call_next(request)


@dataclass(frozen=True)
class Settings:
    """What a replica needs of a run; small and picklable."""

    model: str
    version: str
    mode: Mode
    template: Template
    dtype: str
    max_images: int
    max_pixels: int
    max_length: int
    max_new_tokens: int
    gpu: bool
    kv_cache_mb: int
    gpu_memory_utilization: float
    seed: int

    @classmethod
    def of(cls, config: Config, run: RunFolder) -> Settings:
        folder = run.model.resolve()
        return cls(
            model=str(folder),
            version=model_version(folder),
            mode=stage_mode(folder.parent.name, config.model.reasoning),
            template=config.model.template,
            dtype=config.model.dtype,
            max_images=config.model.max_images,
            max_pixels=config.model.max_pixels,
            max_length=config.model.max_length,
            max_new_tokens=config.serve.max_new_tokens,
            gpu=config.serve.gpus > 0,
            kv_cache_mb=config.rollout.kv_cache_mb,
            gpu_memory_utilization=config.rollout.gpu_memory_utilization,
            seed=config.seed,
        )


def model_version(folder: Path) -> str:
    """The stage that made the model and a hash of its weight files: "grpo-1f0c2a9b3d4e"."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{folder.parent.name}-{digest.hexdigest()[:12]}"


def prompt_length(processor: Any, prompt: str, images: list[Image.Image]) -> int:
    """Tokens of a rendered prompt as the engine counts them: an image's placeholder becomes its merged patches."""
    tokens = sum(image_tokens_by_size(processor, image.width, image.height) for image in images)
    return len(processor.tokenizer(prompt).input_ids) - len(images) + tokens


@ray_serve.deployment(max_ongoing_requests=256, health_check_period_s=5, graceful_shutdown_timeout_s=5)
@ray_serve.ingress(api)
class ReasonService:
    """One replica: a vLLM engine, the processor that counts and renders prompts, and the two routes."""

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
                disable_log_stats=True,
                **memory,
            )
        )
        hf_config = self.engine.model_config.hf_config
        eos = eos_token_ids(settings.model, self.processor)
        banned = banned_token_ids(self.processor, hf_config.get_text_config().vocab_size, eos)
        self.bias = dict.fromkeys(banned, BAN_BIAS)

    def check_health(self) -> None:
        """Serve asks; an engine that died makes it start the replica anew."""
        if self.engine.errored:
            raise RuntimeError("the vLLM engine has stopped")

    @api.get("/healthz")
    def healthz(self) -> Health:
        s = self.settings
        return Health(status="ok", model_version=s.version, template=s.template, max_images=s.max_images)

    @api.post("/reason")
    async def reason(self, request: ReasonRequest) -> ReasonReply:
        start = time.perf_counter()
        prompt, images = await asyncio.to_thread(self._prepare, request)
        text = await self._generate(prompt, images, request)
        return self._read(text, len(images), time.perf_counter() - start)

    def _prepare(self, request: ReasonRequest) -> tuple[str, list[Image.Image]]:
        """The rendered prompt and the images as the model sees them; Refusal for everything that cannot be asked."""
        settings = self.settings
        if len(request.images) > settings.max_images:
            raise Refusal(
                "too_many_images",
                f"{len(request.images)} images, this model takes at most {settings.max_images}",
                "images",
                "send fewer images, or serve a model that was trained with more (model.max_images)",
            )
        if not request.question.strip():
            raise Refusal("empty_question", "the question is empty", "question", "write a question")
        images = [decode_image(text, index) for index, text in enumerate(request.images)]
        images = [shrink(image, settings.max_pixels) for image in images]
        try:
            messages = build_prompt(
                request.question, len(images), request.answer_form, settings.mode, settings.template
            )
        except ValueError as error:
            raise Refusal("reserved_token", str(error), "question", "remove the token") from None
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        length = prompt_length(self.processor, prompt, images)
        if length >= settings.max_length:
            raise Refusal(
                "prompt_too_long",
                f"the prompt has {length} tokens, images included; the context has {settings.max_length}",
                "question, images",
                "shorten the question, or send fewer or smaller images",
            )
        return prompt, images

    async def _generate(self, prompt: str, images: list[Image.Image], request: ReasonRequest) -> str:
        from vllm import SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        sampling = SamplingParams(
            temperature=request.temperature,
            seed=request.seed,
            max_tokens=self.settings.max_new_tokens,
            stop=[STOP],
            include_stop_str_in_output=True,
            logit_bias=self.bias,
        )
        inputs: Any = {"prompt": prompt, "multi_modal_data": {"image": images}}
        text = ""
        try:
            async with asyncio.timeout(REPLY_DEADLINE_S):
                async for output in self.engine.generate(inputs, sampling, uuid.uuid4().hex):
                    text = output.outputs[0].text
        except TimeoutError:
            what = f"no reply within {REPLY_DEADLINE_S:g} s"
            raise Refusal("too_slow", what, "server", "try again later, or serve more replicas", status=503) from None
        except EngineDeadError:
            what = "the model's engine has stopped and is being started anew"
            raise Refusal("engine_stopped", what, "server", "try again in a minute", status=503) from None
        return text

    def _read(self, text: str, n_views: int, seconds: float) -> ReasonReply:
        response = parse_response(text, n_views, self.settings.mode)
        actions, poses = [], []
        for (source, target), atoms in sorted(response.plans.items()):
            actions.append(Plan(source=source, to=target, action=[{name: value} for name, value in atoms]))
            matrix = compose(atoms, None).as_matrix().round(6).tolist()
            poses.append(Pose(source=source, to=target, matrix=matrix))
        return ReasonReply(
            answer=response.answer,
            actions=actions,
            poses=poses,
            text=text,
            format_ok=response.format_ok,
            problems=list(response.problems),
            model_version=self.settings.version,
            seconds=round(seconds, 4),
        )


_ray_of_ours: Literal["", "joined", "started"] = ""
"""What `start_service` did to have a cluster: nothing, joined the one of RAY_ADDRESS, started one on this machine."""


def start_service(config: Config, run: RunFolder, port: int | None = None, blocking: bool = False) -> str:
    """Serve the run's model; returns the base URL once `/healthz` answers.

    Uses the Ray cluster of this process, else the one that RAY_ADDRESS names, else starts one here. With `blocking` it
    returns after Ctrl-C, the service stopped. Raises ConfigError when there is no model, the port is taken or CPUs or
    GPUs are too few, and when the service is not up within START_DEADLINE_S.
    """
    global _ray_of_ours
    serving = config.serve
    port = serving.port if port is None else port
    if not (run.model / "config.json").is_file():
        raise ConfigError(f"{run.path} has no finished model to serve; finish a stage with `hatch train` first")
    _check_port(serving.host, port)
    settings = Settings.of(config, run)
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "local")
        options = {"include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, logging_level="warning", **options)
        _ray_of_ours = "started" if address == "local" else "joined"
    try:
        _check_resources(config)
        _deploy(config, settings, port)
        url = f"http://{'127.0.0.1' if serving.host == '0.0.0.0' else serving.host}:{port}"
        _wait_until_healthy(url)
    except BaseException:
        stop_service()
        raise
    if blocking:
        _serve_until_interrupt(url, settings.version)
    return url


def stop_service() -> None:
    """Stop Ray Serve; the cluster too when `start_service` started it, and leave it when it joined one."""
    global _ray_of_ours
    if _ray_of_ours != "started":
        ray_serve.shutdown()
    if _ray_of_ours:
        ray.shutdown()
    _ray_of_ours = ""


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port} ({error.strerror}); choose another serve.port") from None


def _check_resources(config: Config) -> None:
    serving, have = config.serve, ray.cluster_resources()
    for name, each in (("CPU", serving.cpus), ("GPU", serving.gpus)):
        needed = serving.replicas * each
        if needed > have.get(name, 0):
            raise ConfigError(
                f"the service needs {needed:g} {name}s ({serving.replicas} replicas of {each:g}), the cluster has "
                f"{have.get(name, 0):g}; lower serve.replicas or serve.{name.lower()}s"
            )


def _deploy(config: Config, settings: Settings, port: int) -> None:
    serving = config.serve
    logger.setLevel(logging.WARNING)
    logs = {"log_level": "ERROR", "enable_access_log": False}
    ray_serve.start(http_options=HTTPOptions(host=serving.host, port=port), logging_config=logs)
    application = ReasonService.options(  # type: ignore[attr-defined]
        num_replicas=serving.replicas,
        ray_actor_options={
            "num_cpus": serving.cpus,
            "num_gpus": serving.gpus,
            "runtime_env": {"env_vars": variables()},
        },
        logging_config=logs,
    ).bind(settings)
    target = ray_serve.RunTarget(target=application, name=APP_NAME, route_prefix="/")
    ray_serve.run_many([target], wait_for_applications_running=False)


def _wait_until_healthy(url: str) -> None:
    """Until the replica runs and the proxy passes requests on to it."""
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        state = ray_serve.status().applications.get(APP_NAME)
        if state is not None and state.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            reasons = [d.message for d in state.deployments.values() if d.message] or [state.message]
            lines = [line.strip() for line in " ".join(reasons).splitlines() if line.strip()]
            raise ConfigError(f"the service could not start: {lines[-1] if lines else 'Ray Serve gave no reason'}")
        if state is not None and state.status == "RUNNING":
            try:
                if httpx.get(f"{url}/healthz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                logger.debug("the proxy does not answer yet at %s", url)
        time.sleep(0.2)
    raise ConfigError(
        f"the service was not ready at {url} within {START_DEADLINE_S:g} s; look for waiting replicas with "
        "`serve status`, and for the reason in Ray's log folder"
    )


def _serve_until_interrupt(url: str, version: str) -> None:
    """Until Ctrl-C or a SIGTERM (which Ray would answer with an abort); then stop in order."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    print(f"serving {version} at {url}: POST /reason, GET /healthz; Ctrl-C stops it", flush=True)
    stopping.wait()
    print("stopping", flush=True)
    stop_service()
