"""What Ray Serve is told of the service, by `hatch serve` and by a Ray Serve config file alike."""

from __future__ import annotations

import json
import os
from typing import Any

from ray.serve import Application
from ray.serve.config import BackpressureConfig

from hatch_ray.config import Config, ConfigError
from hatch_ray.environment import variables
from serve.guard import EDGE_VARIABLE
from serve.settings import Settings

RETRY_S = 1
"""What a request that is refused as busy is told to wait, seconds."""
DRAIN_S = 5
"""Seconds in which HAProxy sees that a replica stops."""
SPARE_PLACES = 64
"""Requests beyond those that run and wait which a replica takes in, to refuse them, or to tell its health."""
QUIET = {"log_level": "ERROR", "enable_access_log": False}
"""Of Ray Serve's own logs."""


def bound(settings: Settings) -> Application:
    """The run's model behind `POST /reason`, as Ray Serve deploys it."""
    from serve.app import ReasonService

    service: Any = ReasonService
    application: Application = service.options(**deployment_options(settings.config)).bind(settings)
    return application


def deployment_options(config: Config) -> dict[str, Any]:
    """Replicas, resources, queue and stop of the deployment. Raises ConfigError where the key is not set here."""
    serving = config.serve
    scaling: dict[str, Any] = {"num_replicas": serving.replicas}
    if serving.max_replicas > serving.replicas:
        few, many, load = serving.replicas, serving.max_replicas, serving.target_ongoing_requests
        scaling = {"autoscaling_config": {"min_replicas": few, "max_replicas": many, "target_ongoing_requests": load}}
    places = serving.max_running + serving.max_waiting
    environment = variables(config.environment) | proxy_variables(config) | _key(serving.api_key_env)
    return scaling | {
        "max_ongoing_requests": places + SPARE_PLACES,
        "max_queued_requests": places,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=RETRY_S),
        "graceful_shutdown_timeout_s": serving.deadline_seconds,
        "graceful_shutdown_wait_loop_s": 0.5,
        "logging_config": QUIET,
        "ray_actor_options": {
            "num_cpus": serving.cpus,
            "num_gpus": serving.gpus,
            "runtime_env": {"env_vars": environment},
        },
    }


def proxy_variables(config: Config) -> dict[str, str]:
    """Environment of Ray Serve's controller (and so of its proxies) and of replicas: `serve.guard.edge`, HAProxy."""
    limits = {"max_body": config.serve.max_body_mb * 2**20, "body_seconds": config.serve.body_seconds}
    found = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.guard.middlewares", EDGE_VARIABLE: json.dumps(limits)}
    if config.serve.haproxy:
        found |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S)}
    return found


def _key(variable: str) -> dict[str, str]:
    if variable and not os.environ.get(variable):
        raise ConfigError(f"serve.api_key_env names {variable}, which is not set; export it with the key, or clear it")
    return {variable: os.environ[variable]} if variable else {}
